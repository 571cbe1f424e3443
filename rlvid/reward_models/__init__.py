"""Reward models that one trains oneself, on pairs of clips of which one is preferred.

A backbone (a VLM of the Qwen2-VL family, or a small video encoder) and a head give three numbers a
clip: visual quality VQ, motion quality MQ, text alignment TA. VQ and MQ never see the prompt
(VideoAlign, arXiv:2501.13918).
"""

from __future__ import annotations

PARTS = ("VQ", "MQ", "TA")
"""Order of the parts in every tensor whose last letter is P."""
