"""A simulated table and small models trained on it, for tests, `make demo` and `decaf eval`. No part of the product."""
