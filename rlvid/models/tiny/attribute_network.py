"""A small 3D convolutional network that reads a caption's attributes off the pixels of a clip.

It is the network of the independent judge: trained on true clips only, it shares nothing with the
hand-made critics. Letters: B clips, T frames, H W pixels, V values of an attribute.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

WEIGHTS_FILE = "judge.safetensors"
NUM_FRAMES, HEIGHT, WIDTH = 17, 32, 32
"""The clips it was trained on; others are resampled to this size."""


class AttributeNetwork(nn.Module):
    """Logits for every attribute of a clip.

    The last convolution's features are pooled over space but not over time: what moves first and
    what comes back is told by their order.
    """

    def __init__(self, attributes: Mapping[str, tuple[str, ...]], width: int = 16) -> None:
        super().__init__()
        self.attributes = dict(attributes)
        self.features = nn.Sequential(
            nn.Conv3d(3, width, (1, 5, 5), stride=(1, 2, 2), padding=(0, 2, 2)),
            nn.GroupNorm(4, width),
            nn.GELU(),
            nn.Conv3d(width, 2 * width, 3, stride=(2, 2, 2), padding=1),
            nn.GroupNorm(4, 2 * width),
            nn.GELU(),
            nn.Conv3d(2 * width, 3 * width, 3, stride=(2, 2, 2), padding=1),
            nn.GroupNorm(4, 3 * width),
            nn.GELU(),
            nn.Conv3d(3 * width, 3 * width, 3, padding=1),
            nn.GroupNorm(4, 3 * width),
            nn.GELU(),
        )
        pooled = 3 * width * 5 * 4
        self.hidden = nn.Sequential(nn.Linear(pooled, 64), nn.GELU(), nn.Dropout(0.1))
        self.heads = nn.ModuleDict(
            {name: nn.Linear(64, len(values)) for name, values in self.attributes.items()}
        )

    def forward(self, videos: Tensor) -> dict[str, Tensor]:
        """[B, T, 3, H, W] float32 in [0, 1] -> logits [B, V] of each attribute."""
        clips = videos.permute(0, 2, 1, 3, 4) * 2.0 - 1.0
        if clips.shape[2:] != (NUM_FRAMES, HEIGHT, WIDTH):
            size = (NUM_FRAMES, HEIGHT, WIDTH)
            clips = functional.interpolate(clips, size, mode="trilinear", align_corners=True)
        features = functional.adaptive_avg_pool3d(self.features(clips), (5, 2, 2))
        hidden = self.hidden(features.flatten(1))
        return {name: head(hidden) for name, head in self.heads.items()}

    def save(self, folder: Path) -> None:
        """Write weights and attribute values as one safetensors file."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: value.contiguous() for name, value in self.state_dict().items()},
            folder / WEIGHTS_FILE,
            metadata={"attributes": json.dumps(self.attributes)},
        )

    @classmethod
    def load(cls, folder: Path) -> AttributeNetwork:
        """Read what `save` wrote, in evaluation mode."""
        file = folder / WEIGHTS_FILE
        if not file.is_file():
            raise ValueError(
                f"attribute judge: no weights at {file}: expected what "
                "rlvid.models.tiny.judge_training writes. Train the judge, or reinstall rlvid."
            )
        with safe_open(file, framework="pt") as weights:
            attributes = json.loads(weights.metadata()["attributes"])
            state = {name: weights.get_tensor(name) for name in list(weights.keys())}
        network = cls({name: tuple(values) for name, values in attributes.items()})
        network.load_state_dict(state)
        return network.requires_grad_(False).eval()
