"""Downloading files: in ranges, resumed, verified; knows nothing of models."""
