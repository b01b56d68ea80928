"""Datasets of clips with ground truth: their interface, and how they are found by name."""
