"""From the fused attention map to masks (Sec. 3.4): points, SAM 2, tracklets, scores, dense masks, live tracking."""
