"""The files of checkpoints: downloaded beforehand, and checked."""
