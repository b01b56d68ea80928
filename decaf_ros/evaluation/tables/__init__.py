"""`decaf reproduce`: the paper's tables as data, run sample by sample in several processes or on a cluster."""
