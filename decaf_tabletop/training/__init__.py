"""Training of the demo checkpoints on the tabletop simulator. Nothing of the package needs it at run time."""
