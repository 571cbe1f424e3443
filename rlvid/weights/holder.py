"""The weights a process samples with, and the next ones: verified beside it, swapped in between.

    stage():  check all --> fill the spare buffer, hashing --> staged      (any thread, any time)
    swap():   staged --> live by exchanging pointers; the old live buffer is the next spare one
                                                                         (between two groups)

Nothing that fails changes what is live or staged. Two buffers trade places; a third is there only
while a publish overtakes a staged one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rlvid.records import WeightsManifest, WeightsReceipt
from rlvid.weights.buckets import Bucket
from rlvid.weights.checksums import base_digest
from rlvid.weights.errors import WeightsError
from rlvid.weights.layout import check_manifest
from rlvid.weights.live import check_fit, verify_live
from rlvid.weights.names import count_bound, trainable_parameters
from rlvid.weights.sources import BucketSource, WeightsPart, open_source
from rlvid.weights.spare import FillTimes, WeightsBuffer

HEADROOM_FRAC = 0.05
"""Of a GPU's memory that stays free when the spare buffer is there too."""
NO_ORDER = (-1, -1)
"""Before the first publish."""


@dataclass(frozen=True, slots=True)
class _Staged:
    manifest: WeightsManifest
    buffer: WeightsBuffer


class WeightsHolder:
    """Keeps one transformer at the newest publish."""

    def __init__(
        self,
        transformer: nn.Module,
        *,
        mode: str,
        actor_id: str,
        verify_live_every: int = 1,
        num_threads: int = 1,
        spare_device: torch.device | None = None,
    ) -> None:
        """Hold what the transformer has now, as no version.

        Args:
            verify_live_every: the live parameters are hashed at versions divisible by it; 0 never.
            spare_device: None is where the parameters are, or the host where a GPU has no room for
                them twice. One that is given is kept to, and a swap then copies instead of
                exchanging pointers.
        """
        self._transformer = transformer
        self._mode = mode
        self._actor_id = actor_id
        self._verify_live_every = verify_live_every
        self._num_threads = num_threads
        self._spare_device = spare_device
        self._base: str | None = None
        self._parameters: dict[str, nn.Parameter] | None = None
        self._live: WeightsManifest | None = None
        self._live_buffer: WeightsBuffer | None = None
        self._staged: _Staged | None = None
        self._spare: WeightsBuffer | None = None
        self._is_trusted = True
        self._stage_lock = threading.Lock()
        self._swap_lock = threading.Lock()
        self._check: Future[None] | None = None
        self._checker: ThreadPoolExecutor | None = None

    @property
    def version(self) -> int:
        """Of what is live; -1 before the first publish."""
        return self._live.version if self._live else -1

    @property
    def digest(self) -> str:
        """Of the live publish's manifest; "base" before the first."""
        return self._live.digest if self._live else "base"

    @property
    def manifest(self) -> WeightsManifest | None:
        """Of what is live; None before the first publish."""
        return self._live

    @property
    def order(self) -> tuple[int, int]:
        """(incarnation, version) of what is live."""
        return self._live.order if self._live else NO_ORDER

    @property
    def newest(self) -> tuple[int, int]:
        """(incarnation, version) of what the next swap leaves live."""
        with self._swap_lock:
            return self._staged.manifest.order if self._staged else self.order

    def note_base(self) -> None:
        """Take the digest of the base model now, before something changes how its weights lie."""
        with self._stage_lock:
            self._base = self._base or base_digest(self._transformer, self._mode)

    def stage(
        self, manifest: WeightsManifest, parts: Sequence[Bucket | WeightsPart]
    ) -> WeightsReceipt:
        """Verify a publish into the spare buffer; the next `swap` makes it live.

        May run in another thread while the transformer is used. Of two staged publishes the newer
        wins; the same one again is acknowledged and nothing done.

        Raises:
            WeightsError: it is older than what is held or staged, of another model, damaged or
                incomplete; everything held and staged stays.
        """
        with self._stage_lock:
            if self._is_known(manifest):
                return self._receipt(manifest, FillTimes())
            self._check_manifest(manifest)
            source = open_source(manifest, parts)
            try:
                times = self._fill(manifest, source)
            finally:
                source.close()
            return self._receipt(manifest, times)

    def swap(self) -> float:
        """Make what is staged live; return the seconds. To be called while nobody samples.

        Raises:
            WeightsError: the adapter is not bound as the manifest says, or what is live was found
                changed; the process must fetch again before it may sample.
        """
        began = time.perf_counter()
        with self._swap_lock:
            staged, self._staged = self._staged, None
            if staged is None:
                if not self._is_trusted:
                    raise WeightsError(
                        f"{self._actor_id}: holds no weights that may be sampled with: the live "
                        "ones are not what was published; fetch the newest publish again"
                    )
                return 0.0
            self._exchange(staged)
        version = staged.manifest.version
        if self._verify_live_every and version % self._verify_live_every == 0:
            self._start_check(staged.manifest)
        return time.perf_counter() - began

    def check_live(self) -> None:
        """Wait for the digest of the live parameters that the last swap asked for.

        To be called before what was sampled is given away.

        Raises:
            WeightsError: what is live is not what was published; nothing may be sampled with it.
        """
        check, self._check = self._check, None
        if check is None:
            return
        try:
            check.result()
        except WeightsError:
            with self._swap_lock:
                self._is_trusted = False
                self._live = None
            raise

    def _is_known(self, manifest: WeightsManifest) -> bool:
        """True for the publish that is held or staged already.

        Raises:
            WeightsError: a newer one is, or another one under the same version.
        """
        with self._swap_lock:
            newest = self._staged.manifest if self._staged else self._live
        if newest is None or manifest.order > newest.order:
            return False
        if manifest == newest:
            return True
        where = f"{self._actor_id}: weights version {manifest.version}"
        if manifest.order == newest.order:
            raise WeightsError(
                f"{where} of incarnation {manifest.incarnation}: expected digest {newest.digest}, "
                f"which is held under that version, got {manifest.digest}; publish a new version"
            )
        raise WeightsError(
            f"{where}: expected a version above {newest.version} of incarnation "
            f"{newest.incarnation}, which is held now, got incarnation {manifest.incarnation}; "
            "fetch the newest publish"
        )

    def _check_manifest(self, manifest: WeightsManifest) -> None:
        where = f"weights version {manifest.version}"
        if manifest.kind != self._mode:
            raise WeightsError(f"{where}: kind: expected {self._mode!r}, got {manifest.kind!r}")
        check_manifest(manifest)
        if self._base is None:
            self._base = base_digest(self._transformer, self._mode)
        if manifest.base_digest != self._base:
            raise WeightsError(
                f"{where}: base model: this process holds {self._base}, the publish belongs to "
                f"{manifest.base_digest}; give learner and actors the same model.path and "
                "model.dtype"
            )
        self._check_bound(manifest)
        check_fit(manifest, self._live_parameters())

    def _check_bound(self, manifest: WeightsManifest) -> None:
        bound = count_bound(self._transformer, self._mode)
        if bound != manifest.num_bound:
            raise WeightsError(
                f"weights version {manifest.version}: adapter: expected it to bind "
                f"{manifest.num_bound} modules as in the learner, it binds {bound} here; give both "
                "the same learner.lora.target_modules, and leave the adapter switched on"
            )

    def _live_parameters(self) -> dict[str, nn.Parameter]:
        if self._parameters is None:
            self._parameters = trainable_parameters(self._transformer, self._mode)
        return self._parameters

    def _fill(self, manifest: WeightsManifest, source: BucketSource) -> FillTimes:
        """Fill a buffer that nobody reads. A publish that is staged already keeps its own until the
        new one is verified: for that long there are three."""
        buffer = self._take_spare(manifest)
        try:
            times = buffer.fill(manifest, source, self._num_threads)
        except BaseException:
            self._give_back(buffer)
            raise
        with self._swap_lock:
            self._staged = _Staged(manifest, buffer)
        return times

    def _give_back(self, buffer: WeightsBuffer) -> None:
        with self._swap_lock:
            if self._staged is None and self._spare is None:
                self._spare = buffer

    def _take_spare(self, manifest: WeightsManifest) -> WeightsBuffer:
        with self._swap_lock:
            spare, self._spare = self._spare, None
        place = self._place(manifest, spare)
        if spare is not None and spare.device == place and spare.has_layout_of(manifest):
            return spare
        del spare  # before the new one is allocated
        return WeightsBuffer(manifest, place, is_pinned=self._device.type == "cuda")

    def _place(self, manifest: WeightsManifest, spare: WeightsBuffer | None) -> torch.device:
        """Return where the next buffer shall be: with the parameters, where it fits beside them."""
        if self._spare_device is not None:
            return self._spare_device
        if self._device.type != "cuda" or (spare is not None and spare.device == self._device):
            return self._device
        host = torch.device("cpu")
        if self._live is None:  # nothing was sampled yet, so nobody knows what sampling takes
            return host
        free, total = torch.cuda.mem_get_info(self._device)
        return self._device if free - manifest.num_bytes >= HEADROOM_FRAC * total else host

    @property
    def _device(self) -> torch.device:
        return next(iter(self._live_parameters().values())).device

    @torch.no_grad()
    def _exchange(self, staged: _Staged) -> None:
        try:
            self._check_bound(staged.manifest)
        except WeightsError:
            self._spare, self._live, self._is_trusted = staged.buffer, None, False
            raise
        parameters = self._live_parameters()
        if staged.buffer.device != self._device or self._spare_device is not None:
            for name, parameter in parameters.items():
                parameter.copy_(staged.buffer.views[name])
            self._spare = staged.buffer
        else:
            for name, parameter in parameters.items():
                parameter.data = staged.buffer.views[name]
            if self._live_buffer is None and self._device.type == "cuda":
                torch.cuda.empty_cache()  # the first parameters leave holes too small for a bucket
            self._spare, self._live_buffer = self._live_buffer, staged.buffer
        self._live = staged.manifest
        self._is_trusted = True

    def _start_check(self, manifest: WeightsManifest) -> None:
        """Hash the live parameters beside the sampling, which only reads them."""
        if self._checker is None:
            self._checker = ThreadPoolExecutor(1, thread_name_prefix="weights-check")
        live: dict[str, Tensor] = {n: p.detach() for n, p in self._live_parameters().items()}
        self._check = self._checker.submit(verify_live, manifest, live)

    def _receipt(self, manifest: WeightsManifest, times: FillTimes) -> WeightsReceipt:
        return WeightsReceipt(
            actor_id=self._actor_id,
            version=manifest.version,
            incarnation=manifest.incarnation,
            digest=manifest.digest,
            num_bytes=manifest.num_bytes,
            transport_s=times.transport_s,
            copy_s=times.copy_s,
            verify_s=times.verify_s,
            swap_s=0.0,
        )


def apply_weights(
    manifest: WeightsManifest,
    buckets: Sequence[Bucket] | Mapping[int, Bucket],
    transformer: nn.Module,
    *,
    mode: str,
) -> None:
    """Make `transformer` the published policy, or raise and leave it as it was.

    Args:
        buckets: in order, or by index as a rank of the learner returns them.

    Raises:
        WeightsError: kind, base model, digests, names, shapes or dtypes do not fit.
    """
    holder = WeightsHolder(transformer, mode=mode, actor_id="this process")
    if isinstance(buckets, Mapping):
        buckets = [buckets[index] for index in sorted(buckets)]
    holder.stage(manifest, buckets)
    holder.swap()
    holder.check_live()
