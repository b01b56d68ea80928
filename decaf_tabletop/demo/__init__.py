"""`make demo`: runs the segmenter node on a recorded camera. Not part of the product."""
