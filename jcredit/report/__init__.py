"""What was found: rows of finished runs, and the tables and figures made from them alone."""
