"""`rlvid rewards new`: a package of one reward, with its test, that works as it is written."""

from __future__ import annotations

import keyword
import re
from pathlib import Path
from string import Template

MODULE = Template('''"""$title: a reward for rlvid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlvid.records import Prompt
from rlvid.rewards.base import ClipSpec, Serving
from torch import Tensor

LUMA = (0.2126, 0.7152, 0.0722)
"""Rec. 709 weights of R, G, B."""


class $kind:
    """$summary"""

    clip_spec = ClipSpec()
    """The clip it wants: fps, num_frames, min_frames, height, width, colour, value_range. A clip
    that does not fit is an error, so declare what the scores depend on."""
    serving = Serving(batch_size=8, deadline_s=60.0)
    """How it is run; the recipe may override every field. Set device="cuda" and num_gpus there
    or here for a model on a GPU."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        """What a recipe may set under `config:`."""

        target: float = 0.5
        """Mean luma that earns the full score."""

    def __init__(self, config: Config) -> None:
        """Load weights here, once; `config` is checked before."""
        self._target = config.target

$method
''')

SCORE = '''    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """[B, T, C, H, W] float32, B prompts -> [B] float32, higher is better.

        A score depends on its own clip and prompt alone. NaN says that a clip could not be judged.
        """
        luma = (videos * videos.new_tensor(LUMA).view(3, 1, 1)).sum(dim=2).mean(dim=(1, 2, 3))
        return 1.0 - (luma - self._target).abs()'''

SCORE_GROUP = '''    def score_group(self, videos: Tensor, prompt: Prompt) -> Tensor:
        """[G, T, C, H, W] float32 of one prompt -> [G] float32, higher is better.

        Here: the share of the group's other clips that lie further from the target.
        """
        luma = (videos * videos.new_tensor(LUMA).view(3, 1, 1)).sum(dim=2).mean(dim=(1, 2, 3))
        distance = (luma - self._target).abs()
        wins = (distance[:, None] < distance[None, :]).float().sum(dim=1)
        return wins / max(1, len(videos) - 1)'''

SUMMARIES = {
    False: "Nearness of the clip's mean luma to a target, in [0, 1].",
    True: "Share of the group's other clips that it beats by nearness to a target luma, in [0, 1].",
}

TEST = Template('''"""The reward keeps the promises that rlvid relies on."""

from __future__ import annotations

import torch
from rlvid.records import Prompt
from rlvid.testing import check_reward

from $name.reward import $kind


def test_contract() -> None:
    """Shape, type, order, batches, determinism, and clips as declared."""
    check_reward($kind($kind.Config()))


def test_a_clip_at_the_target_beats_a_black_one() -> None:
    """Replace this by what your reward claims to see."""
    reward = $kind($kind.Config(target=0.5))
    clips = torch.stack([torch.full((4, 3, 8, 8), level) for level in (0.0, 0.5)])
    $call
    assert scores[1] > scores[0]
''')
CALLS = {
    False: 'scores = reward.score(clips, [Prompt(prompt_id="a", text="grey")] * 2)',
    True: 'scores = reward.score_group(clips, Prompt(prompt_id="a", text="grey"))',
}

PROJECT = Template("""[build-system]
requires = ["setuptools>=78"]
build-backend = "setuptools.build_meta"

[project]
name = "$name"
version = "0.1.0"
description = "$title: a reward for rlvid"
requires-python = ">=3.11"
dependencies = ["torch", "numpy", "msgpack", "pydantic>=2.10"]

[tool.setuptools]
packages = ["$name"]

[tool.pytest.ini_options]
testpaths = ["tests"]
pythonpath = ["."]
""")

RECIPE = Template("""# Part of a recipe: this reward beside one that ships.
rewards:
  scorers:
    - {use: adherence}
    - use: "$name.reward:$kind"
      name: $name
      weight: 0.5
      config: {target: 0.5}
      # An environment of its own, for packages that conflict with rlvid's; it needs torch, numpy,
      # msgpack and pydantic, in any version, and this package. rlvid itself is lent to it.
      # python: /envs/$name/bin/python
""")

README = Template("""# $name

$summary A reward for rlvid: `use: "$name.reward:$kind"`, see `recipe.yaml`.

```bash
pip install --no-deps -e .
pytest
```
""")


def write_new_reward(name: str, folder: Path, *, is_group: bool) -> list[Path]:
    """Write the package `name` into `folder`/`name`; returns the files.

    Raises:
        ValueError: the name cannot be a module's, or the folder is there already.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise ValueError(
            f"rewards new: {name!r} cannot be a module: expected lower-case letters, digits and "
            "underscores, e.g. motion_smoothness"
        )
    top = folder / name
    if top.exists():
        raise ValueError(f"rewards new: {top} is there already; choose another name or --folder")
    words = {
        "name": name,
        "kind": "".join(part.capitalize() for part in name.split("_")),
        "title": name.replace("_", " ").strip().capitalize(),
        "summary": SUMMARIES[is_group],
        "method": SCORE_GROUP if is_group else SCORE,
        "call": CALLS[is_group],
    }
    module = MODULE.substitute(words)
    if is_group:  # a group-wise reward is handed one prompt
        module = module.replace("from collections.abc import Sequence\n", "")
    files = {
        f"{name}/__init__.py": f'"""{words["title"]}: a reward for rlvid."""\n',
        f"{name}/reward.py": module,
        f"tests/test_{name}.py": TEST.substitute(words),
        "pyproject.toml": PROJECT.substitute(words),
        "recipe.yaml": RECIPE.substitute(words),
        "README.md": README.substitute(words),
    }
    written = []
    for path, text in files.items():
        (top / path).parent.mkdir(parents=True, exist_ok=True)
        (top / path).write_text(text)
        written.append(top / path)
    return written
