"""A simulated table and models trained on it, for tests, `make demo` and `decaf eval`. Not part of the product."""
