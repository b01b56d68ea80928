"""The methods that the paper compares with, each from its own paper's description, in the same evaluation as DecAF."""
