"""Compares two results of one input: masks, ids and answers, or the scores of two evaluations."""
