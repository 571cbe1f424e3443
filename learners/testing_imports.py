"""What ranks of `testing.run_ranks` need, imported once by the process that they are forks of."""

import os

os.environ["DS_ACCELERATOR"] = "cpu"  # read when DeepSpeed is imported

import deepspeed
import peft
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from transformers import UMT5EncoderModel

import rlvid.learners.rl
import rlvid.learners.sft
import rlvid.learners.testing

__all__ = [
    "AutoencoderKLWan",
    "UMT5EncoderModel",
    "WanTransformer3DModel",
    "deepspeed",
    "peft",
    "rlvid",
]
