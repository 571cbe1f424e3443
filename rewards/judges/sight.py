"""Checks that a judge saw what it was sent, by the number of prompt tokens that its server counts.

Servers drop frames without a word: vLLM reads an mp4 at 2 frames a second, whatever it holds, and
a video/jpeg up to 32 frames. So the tokens of one picture are measured once by requests that
cannot be cut, and every answer's count is compared with what was sent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rlvid.rewards.base import RewardError
from rlvid.rewards.judges.client import Completion, JudgeClient, message
from rlvid.rewards.judges.frames import Shown, View
from rlvid.rewards.judges.once import Once

PROBE_TEXT = "Yes or No?"


class JudgeSightError(RewardError):
    """The judge saw less, or more, than it was sent; its answers are worth nothing."""


class Sight:
    """Tokens of a picture, by model, kind and size; lives in the client's event loop."""

    def __init__(self, client: JudgeClient) -> None:
        self._client = client
        self._per_frame: Once[tuple[str, str, tuple[int, int]], tuple[float, float]] = Once()

    async def check(
        self, shown: Sequence[Shown], texts: Sequence[str], answer: Completion, *, system: str = ""
    ) -> None:
        """Raise JudgeSightError unless the prompt had the tokens of all that was shown.

        Args:
            texts: every text of the message, labels included.
        """
        num_text = await self._client.num_text_tokens(texts, system=system)
        one = shown[0]
        num_sent = sum(part.num_sent for part in shown)
        visual = answer.prompt_tokens - num_text
        if one.kind == "image" and num_sent == 1:
            per_frame, overhead = float(max(1, visual)), 0.0
            seen = 1.0 if visual > 0 else 0.0
        else:
            per_frame, overhead = await self._tokens(one, answer.endpoint.model_digest)
            seen = (visual - overhead * len(shown)) / per_frame
        # Video models merge frames in pairs, so an odd number counts as the next even one.
        spare = 1.5 * len(shown) if one.kind == "video" else 0.5
        if num_sent - 0.5 < seen < num_sent + spare:
            return
        if one.kind == "video":
            advice = (
                "The server takes its own choice of frames: set clip_fps of its entry in "
                f"rewards.servers to {max(1, math.ceil(one.fps))}, or show frames as `images`."
            )
        else:
            advice = "The server drops or shrinks images; show fewer or smaller ones."
        raise JudgeSightError(
            f"judge: {answer.endpoint.url} saw about {seen:.1f} of {num_sent} frames "
            f"({answer.prompt_tokens} prompt tokens, of them {num_text} text, {per_frame:g} a "
            f"frame). {advice} check_sight: false judges all the same."
        )

    async def _tokens(self, like: Shown, digest: str) -> tuple[float, float]:
        """Return (tokens a frame, tokens a clip besides) of pictures of this kind and size."""

        async def measure() -> tuple[float, float]:
            if like.kind == "image":
                per_frame, overhead = await self._probe("images", 1, like.size), 0.0
            else:
                two = await self._probe("jpeg", 2, like.size)
                four = await self._probe("jpeg", 4, like.size)
                per_frame = (four - two) / 2.0
                overhead = two - 2.0 * per_frame
            if per_frame <= 0.0:
                raise JudgeSightError(
                    f"judge: the server counts as many tokens for four frames as for two, so what "
                    f"it sees of {like.kind}s of {like.size} cannot be checked. Show frames as "
                    "`images`, or set check_sight: false."
                )
            return per_frame, overhead

        return await self._per_frame.get((digest, like.kind, like.size), measure)

    async def _probe(self, layout: str, count: int, size: tuple[int, int]) -> float:
        """Return the tokens that so many frames add to a text."""
        rng = np.random.default_rng(0)
        frames = rng.integers(0, 256, size=(count, *size, 3), dtype=np.uint8)
        view = View(layout="images" if layout == "images" else "jpeg", num_frames=None)
        content = message([view.show(frames, fps=float(count))], PROBE_TEXT)
        answer = await self._client.chat(content, max_tokens=1)
        return float(answer.prompt_tokens - await self._client.num_text_tokens([PROBE_TEXT]))
