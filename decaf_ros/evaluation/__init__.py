"""Clips with known answers, and how good the method's answers are: `decaf eval`."""
