"""A peer of a rollout actor: runs the forwards of its leader, on its part of the tokens.

    python -m rlvid.actors.gang_peer LEADER_PID

Its settings are the first line of standard input, in JSON; each further byte there announces an
exchange (`gang_calls`), and the end of it the end. It holds a transformer and no more, says nothing
but on standard error, and whatever goes wrong ends it: the leader tells the fleet.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from torch import Tensor

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serve until the leader closes the pipe."""
    die_with(int(sys.argv[1]))
    inbox = sys.stdin.buffer
    try:
        Peer(json.loads(inbox.readline())).serve(inbox)
    except BaseException:  # whatever it is, the leader is told by these lines
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)  # interpreter exit sometimes aborts in gloo's threads


def die_with(leader: int) -> None:
    """Have the kernel kill this process when the leader's dies, however it dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != leader:  # it died before we asked
        os._exit(1)


class Peer:
    """Has a method for each kind of message."""

    def __init__(self, settings: dict[str, Any]) -> None:
        """Load the policy and tell the leader.

        Args:
            settings: as `Gang` writes them.
        """
        import torch

        from rlvid.config import LearnerConfig, ModelConfig
        from rlvid.process_groups import join_store

        self._settings = settings
        self._model = ModelConfig.model_validate(settings["model"])
        learner = settings["learner"]
        self._learner = LearnerConfig.model_validate(learner) if learner else None
        self._device = torch.device(settings["device"])
        self._num_opened = 0
        self._has_worked = False
        start = timedelta(seconds=settings["start_deadline_s"])
        self._store = join_store(settings["host"], settings["port"], settings["token"], start)
        torch.set_num_threads(settings["num_threads"])
        self._load(settings["policy"], self._learner)

    def serve(self, inbox: BinaryIO) -> None:
        """Meet the gang when it is asked to, then answer its messages."""
        from rlvid.actors.gang_calls import Channel
        from rlvid.models.sequence_parallel import spread_tokens
        from rlvid.process_groups import open_group

        if not inbox.read(1):
            return
        settings = self._settings
        deadline = timedelta(seconds=settings["deadline_s"])
        limit = 2 * deadline if settings["backend"] == "nccl" else deadline
        self._group = open_group(
            settings["backend"],
            self._store,
            settings["rank"],
            settings["num_ranks"],
            deadline=limit,
            host=settings["host"],
        )
        spread_tokens(self._transformer, self._group)
        self._channel = Channel(self._group, self._device, deadline)
        answers: dict[str, Callable[..., None]] = {
            "open": self.open,
            "weights": self.weights,
            "forward": self.forward,
        }
        while inbox.read(1):
            message, tensors = self._channel.receive()
            answers[message.pop("kind")](tensors, **message)

    def open(self, tensors: list[Tensor], *, policy: dict[str, Any]) -> None:
        """Load another policy from files."""
        from rlvid.models.sequence_parallel import spread_tokens

        self._load(policy, None)
        spread_tokens(self._transformer, self._group)

    def weights(self, tensors: list[Tensor], *, manifest: bytes, is_verified: bool) -> None:
        """Take what is live at the leader.

        Raises:
            WeightsError: it is not what the manifest says was published.
        """
        from rlvid.weights import trainable_parameters
        from rlvid.weights.live import verify_live
        from rlvid.weights.manifest import manifest_from_bytes

        published = manifest_from_bytes(manifest)
        live = trainable_parameters(self._transformer, published.kind)
        for name, parameter in live.items():
            assert parameter.is_contiguous(), f"{name} is received in place"
            self._channel.share(parameter)
        if is_verified:
            verify_live(published, {name: p.detach() for name, p in live.items()})
        self._order = published.order

    def forward(
        self, tensors: list[Tensor], *, order: list[int], arguments: dict[str, Any]
    ) -> None:
        """Run a forward of the leader's.

        Raises:
            RuntimeError: it is to be of other weights than are held here.
        """
        import torch

        from rlvid.actors.gang_calls import put_together
        from rlvid.priority import yield_to_starting

        if tuple(order) != self._order:
            raise RuntimeError(
                f"gang: rank {self._settings['rank']} holds weights {self._order} (incarnation, "
                f"version), the leader samples with {tuple(order)}"
            )
        given = put_together(arguments, tensors)
        with torch.no_grad():
            self._transformer(*given["args"], **given["kwargs"])
        if not self._has_worked:
            self._has_worked = True
            yield_to_starting()

    def _load(self, policy: dict[str, Any], learner: Any) -> None:
        import torch

        from rlvid.actors.rollout_worker import open_for_sampling
        from rlvid.collector import paused_collector
        from rlvid.models.policy import Policy

        with paused_collector():
            model, _ = open_for_sampling(Policy.from_json(policy), self._model, learner)
        self._transformer = model.transformer
        del model  # text encoder and VAE are the leader's
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        self._order = (-1, -1)
        self._store.set(f"loaded/{self._num_opened}/{self._settings['rank']}", "1")
        self._num_opened += 1


if __name__ == "__main__":
    main()
