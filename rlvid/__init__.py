"""rlvid: reinforcement-learning post-training of video diffusion models."""

__version__ = "0.1.0"
