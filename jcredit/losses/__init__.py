"""Losses that train credit estimators."""
