"""`rlvid vbench2`: the benchmark's questions put to served models, and the official package."""
