"""A small simulated world: objects on a table seen by a camera, with ground truth and referring expressions."""
