"""Evaluation against ground truth, run by `decaf eval`."""
