"""A small simulated world: objects on a table, seen by a camera, with ground truth and expressions that mean them."""
