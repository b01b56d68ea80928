"""`make demo`: the real node on a recorded camera. Nothing here is part of the installed package."""
