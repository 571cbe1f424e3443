"""A whole publish in flat buffers with a view for each tensor: one half of the double buffer."""

from __future__ import annotations

import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from rlvid.records import WeightsManifest
from rlvid.weights.buckets import Bucket, check_digest
from rlvid.weights.checksums import copy_and_digest, digest_bytes
from rlvid.weights.layout import DTYPES, tensor_bytes_of
from rlvid.weights.sources import BucketSource


@dataclass(slots=True)
class FillTimes:
    """Seconds of filling, summed over buckets (and over threads)."""

    transport_s: float = 0.0
    copy_s: float = 0.0
    verify_s: float = 0.0


class WeightsBuffer:
    """Flat buffers on one device in the layout of a manifest."""

    def __init__(
        self, manifest: WeightsManifest, device: torch.device, *, is_pinned: bool = False
    ) -> None:
        """Allocate; `is_pinned` makes host memory such that a GPU can read it by itself."""
        is_pinned = is_pinned and device.type == "cpu"
        self.device = device
        self._tensors = manifest.tensors
        self.buckets = [
            torch.empty(bucket.num_bytes, dtype=torch.uint8, device=device, pin_memory=is_pinned)
            for bucket in manifest.buckets
        ]
        self.views: dict[str, Tensor] = {
            entry.name: self.buckets[entry.bucket][
                entry.offset : entry.offset + tensor_bytes_of(entry)
            ]
            .view(DTYPES[entry.dtype])
            .reshape(entry.shape)
            for entry in manifest.tensors
        }

    def has_layout_of(self, manifest: WeightsManifest) -> bool:
        """True where a publish of this manifest can be written without allocating."""
        sizes = [bucket.num_bytes for bucket in manifest.buckets]
        return self._tensors == manifest.tensors and sizes == [b.numel() for b in self.buckets]

    def fill(self, manifest: WeightsManifest, source: BucketSource, num_threads: int) -> FillTimes:
        """Write every bucket and verify what was written; after an error the content is nothing.

        Raises:
            WeightsError: bytes are missing or not those that were published.
        """
        times = FillTimes()
        # One view after the other: what a source cannot map arrives in the order of the sender.
        if num_threads > 1 and source.view(0) is not None:
            with ThreadPoolExecutor(num_threads) as pool:
                every = list(
                    pool.map(lambda i: self._fill(manifest, source, i), range(len(self.buckets)))
                )
        else:
            every = [self._fill(manifest, source, index) for index in range(len(self.buckets))]
        for one in every:
            times.transport_s += one.transport_s
            times.copy_s += one.copy_s
            times.verify_s += one.verify_s
        return times

    def _fill(self, manifest: WeightsManifest, source: BucketSource, index: int) -> FillTimes:
        times = FillTimes()
        target = self.buckets[index]
        began = time.perf_counter()
        view = source.view(index)
        if view is None:
            source.receive(index, target)
        times.transport_s = time.perf_counter() - began
        if view is not None and self.device.type == "cpu":
            digest, times.copy_s, times.verify_s = copy_and_digest(view, target.numpy())
        else:
            began = time.perf_counter()
            digest = digest_bytes(target.cpu().numpy() if view is None else view)
            times.verify_s = time.perf_counter() - began
        check_digest(manifest, index, digest)
        if view is not None and self.device.type != "cpu":
            began = time.perf_counter()
            _to_device(view, target)
            times.copy_s = time.perf_counter() - began
        return times


def _to_device(view: Bucket, target: Tensor) -> None:
    """Copy host bytes to an accelerator, on a stream of its own beside the running forward."""
    with warnings.catch_warnings():
        # The object store's pages are read-only; copy_ only reads them.
        warnings.simplefilter("ignore", UserWarning)
        host = torch.from_numpy(view)
    stream = torch.cuda.Stream(target.device)
    # Memory that is new here may have been freed by kernels that are still to run.
    stream.wait_stream(torch.cuda.default_stream(target.device))
    with torch.cuda.stream(stream):
        target.copy_(host, non_blocking=True)
    stream.synchronize()
