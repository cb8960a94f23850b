"""What only the study's scripts need: its settings, what an experiment is, fits on frozen features, local steps."""
