"""The processes that sample one clip together with a rollout actor: `rollout.sequence_parallel`.

    leader (the actor: all of RolloutWorker)          n - 1 peers (gang_peer.py)
      forward of its transformer  -- arguments -->    the same forward, tokens spread (Ulysses)
      new weights swapped in      -- parameters -->   the same weights, compared with the manifest

Seeds, steps, decoder and records are the leader's alone, so a group is what one process samples, up
to the rounding of a forward whose matrices are cut in n (tests/numerics/test_gang.py).

Every exchange has a deadline, and a peer that ends or is late ends the gang: the actor raises
`GangError` from then on, and the fleet replaces it. A forward names the weights it is of, and a
peer with others ends too.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from rlvid.actors.gang_calls import Channel, taken_apart
from rlvid.actors.gang_peers import HOST, Peers, check_policy
from rlvid.actors.gang_process import GangError
from rlvid.models.policy import Policy
from rlvid.models.sequence_parallel import spread_tokens
from rlvid.process_groups import open_group
from rlvid.records import WeightsManifest
from rlvid.weights import trainable_parameters
from rlvid.weights.manifest import manifest_to_bytes

logger = logging.getLogger(__name__)

NO_ORDER = (-1, -1)
"""Of weights from files."""


class Gang:
    """The leader's end: spreads its transformer over the peers, and passes weights on."""

    def __init__(self, peers: Peers) -> None:
        """`peers` load the policy of the transformer that is to be led."""
        self._peers = peers
        self._group: Any = None
        self._channel: Channel | None = None
        self._order = NO_ORDER
        """(incarnation, version) of the weights that the peers hold."""
        self._is_exchanging = False
        """From the begin of an exchange to its end, if that comes."""
        self._alarm: threading.Timer | None = None
        self._broken = ""

    @property
    def pids(self) -> tuple[int, ...]:
        """Of the peers, in order of rank."""
        return self._peers.pids

    def close(self) -> None:
        """End the peers."""
        if self._alarm is not None:
            self._alarm.cancel()
        self._peers.end()

    # Policies

    def begin_open(self, policy: Policy) -> None:
        """Have the peers load another policy from files; `lead` waits for them.

        Raises:
            ValueError: it is none that can be spread.
        """
        check_policy(policy)
        self._order = NO_ORDER
        with self._exchange() as channel:
            channel.send({"kind": "open", "policy": policy.to_json()})

    def lead(self, transformer: nn.Module) -> None:
        """Spread every forward of `transformer` over the gang from now on.

        Its policy is the one that the peers were told last.

        Raises:
            ValueError: its tokens cannot be spread, see `spread_tokens`.
            GangError: a peer ended, or did not load in time.
        """
        self._peers.wait_loaded()
        if self._channel is None:
            self._meet()
        transformer.register_forward_pre_hook(self._announce, with_kwargs=True)
        transformer.register_forward_hook(self._after_forward, always_call=True)
        spread_tokens(transformer, self._group)

    def _meet(self) -> None:
        deadline = timedelta(seconds=self._peers.settings.deadline_s)
        # NCCL's own limit ends the process, so the alarm of `_begin` has to be first.
        limit = 2 * deadline if self._peers.backend == "nccl" else deadline
        self._peers.wake()
        try:
            self._group = open_group(
                self._peers.backend,
                self._peers.store,
                0,
                self._peers.settings.num_ranks,
                deadline=limit,
                host=HOST,
            )
        except RuntimeError as error:
            raise self._breaks(error) from error
        self._channel = Channel(self._group, self._peers.device, deadline)

    # Weights

    def hold(
        self, manifest: WeightsManifest | None, transformer: nn.Module, *, verify_every: int
    ) -> float:
        """Bring the peers to the weights that are live here; return the seconds it took.

        Args:
            manifest: of what is live; None is what the files had.
            verify_every: versions divisible by it are compared, on each peer, with the manifest's
                digests; 0 none.
        """
        if manifest is None or manifest.order == self._order:
            return 0.0
        began = time.perf_counter()
        is_verified = bool(verify_every) and manifest.version % verify_every == 0
        with self._exchange() as channel:
            message = {"kind": "weights", "manifest": manifest_to_bytes(manifest)}
            channel.send({**message, "is_verified": is_verified})
            for parameter in trainable_parameters(transformer, manifest.kind).values():
                channel.share(parameter)
            self._order = manifest.order
        return time.perf_counter() - began

    # Forwards

    def _announce(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors: list[Tensor] = []
        arguments = taken_apart({"args": args, "kwargs": kwargs}, tensors)
        message = {"kind": "forward", "order": self._order, "arguments": arguments}
        self._begin().send(message, tensors)

    def _after_forward(self, module: nn.Module, args: Any, output: Any) -> None:
        if output is None:  # it raised, and the ranks are anywhere in it
            return
        if self._peers.backend == "nccl":
            torch.cuda.current_stream(self._peers.device).synchronize()  # within the alarm's time
        self._end()

    # Failures

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Within the block an exchange that breaks off is a GangError that says who and why.

        Raises:
            GangError: one has, now or before. A ValueError stays: it is the recipe's.
        """
        if self._broken:
            raise GangError(self._broken)
        try:
            yield
        except GangError:
            raise
        except Exception as error:
            if not self._is_exchanging:
                raise
            broken = self._breaks(error)
            # torch's log of a failed exchange trips over a group that has no name of its own, so
            # a ValueError behind another error is not the recipe's.
            if isinstance(error, ValueError) and error.__context__ is None:
                raise
            raise broken from error

    @contextmanager
    def _exchange(self) -> Iterator[Channel]:
        yield self._begin()
        self._end()

    def _begin(self) -> Channel:
        """Wake the peers for what comes.

        Raises:
            GangError: one is gone.
        """
        assert self._channel is not None, "lead() comes first"
        self._is_exchanging = True
        if not self._peers.are_alive:
            raise self._breaks(None)
        if self._peers.backend == "nccl":  # its operations do not fail by themselves, gloo's do
            self._alarm = threading.Timer(self._peers.settings.deadline_s, self._group.abort)
            self._alarm.daemon = True
            self._alarm.start()
        self._peers.wake()
        return self._channel

    def _end(self) -> None:
        self._is_exchanging = False
        if self._alarm is not None:
            self._alarm.cancel()

    def _breaks(self, error: Exception | None) -> GangError:
        """End the gang; return the error that says why."""
        self._broken = self._peers.why(error)
        logger.error("gang broke reason=%r", self._broken)
        self.close()
        return GangError(self._broken)
