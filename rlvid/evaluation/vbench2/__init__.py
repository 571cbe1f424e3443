"""VBench-2.0 (arXiv:2503.21755): its 18 dimensions, each by its own rule, and their means.

The rules are read from the benchmark's code (github.com/Vchitect/VBench, folder VBench-2.0); the
wording of what a judge is asked is ours, so figures to be compared with published ones come from
the official package (`launch.vbench2.official`), and ours compare policies with one another.
"""
