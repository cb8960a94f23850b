"""Losses that train credit estimators, and the local rules that spend a credit."""
