"""From key frames and a query to a fused attention map (paper, Sec. 3.2 and 3.3)."""
