"""Trains the stand-in checkpoints of the simulated table. Nothing here is needed at run time."""
