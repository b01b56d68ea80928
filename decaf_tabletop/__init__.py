"""A simulated table with small models trained on it: data for tests, the demo and `decaf eval`. No part of the product."""
