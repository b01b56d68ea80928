"""The checks of `decaf doctor`: what stands in the way of an answer. None of them changes anything."""
