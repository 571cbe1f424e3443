"""Publishes that must not be taken, drawn at random; shared by the test and the benchmark."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rlvid.records import WeightsManifest
from rlvid.weights import Bucket, manifest_digest

Bundle = tuple[WeightsManifest, list[Any]]


def sealed(manifest: WeightsManifest, **changes: Any) -> WeightsManifest:
    """Change a manifest and give it the digest of its new content: consistent, and wrong."""
    changed = replace(manifest, **changes)
    return replace(changed, digest=manifest_digest(changed))


class Fuzzer:
    """Draws damaged bundles from good ones.

    Args of the kinds: `good` is the newest publish, which would be taken; `old` was published
    before what is held; `other` is good and of another content in the same layout.
    """

    def __init__(self, good: Bundle, old: Bundle, other: Bundle, seed: int) -> None:
        self._good, self._old, self._other = good, old, other
        self._random = random.Random(seed)
        self.kinds: dict[str, Callable[[], Bundle]] = {
            "bit flip": self._flip,
            "several bits": self._flip_several,
            "truncated": self._truncate,
            "extended": self._extend,
            "dropped bucket": self._drop,
            "added bucket": self._add,
            "reordered": self._reorder,
            "zeroed page": self._zero,
            "replayed old version": self._replay,
            "old buckets, new manifest": self._old_bytes,
            "manifest of another publish": self._foreign_manifest,
            "wrong base": self._wrong_base,
            "wrong kind": self._wrong_kind,
            "wrong dtype": self._wrong_dtype,
            "other dtype of equal size": self._other_dtype,
            "renamed tensor": self._rename,
            "swapped names": self._swap_names,
            "swapped shape": self._swap_shape,
            "duplicated tensor": self._duplicate,
            "missing tensor": self._lose_tensor,
            "moved tensor": self._move,
            "overlapping tensors": self._overlap,
            "binds nothing": self._unbound,
            "changed field": self._unsealed,
            "bucket of wrong type": self._wrong_type,
            "bucket digests swapped": self._swap_digests,
        }

    def draw(self) -> tuple[str, WeightsManifest, list[Any]]:
        """Return a kind of damage and a bundle that has it."""
        kind = self._random.choice(list(self.kinds))
        manifest, buckets = self.kinds[kind]()
        return kind, manifest, buckets

    def _with_bucket(self, change: Callable[[Bucket], Any]) -> Bundle:
        manifest, buckets = self._good
        index = self._random.randrange(len(buckets))
        return manifest, [*buckets[:index], change(buckets[index].copy()), *buckets[index + 1 :]]

    def _flip(self) -> Bundle:
        def change(bucket: Bucket) -> Bucket:
            bucket[self._random.randrange(bucket.size)] ^= np.uint8(1 << self._random.randrange(8))
            return bucket

        return self._with_bucket(change)

    def _flip_several(self) -> Bundle:
        def change(bucket: Bucket) -> Bucket:
            for place in self._random.sample(range(bucket.size), 8):
                bucket[place] ^= np.uint8(1 << self._random.randrange(8))
            return bucket

        return self._with_bucket(change)

    def _truncate(self) -> Bundle:
        return self._with_bucket(lambda bucket: bucket[: self._random.randrange(bucket.size)])

    def _extend(self) -> Bundle:
        more = self._random.randrange(1, 100)
        return self._with_bucket(lambda bucket: np.concatenate([bucket, bucket[:more]]))

    def _zero(self) -> Bundle:
        def change(bucket: Bucket) -> Bucket:
            start = self._random.randrange(bucket.size)
            page = bucket[start : start + 4096]
            page[:] = 0 if page.any() else 1
            return bucket

        return self._with_bucket(change)

    def _wrong_type(self) -> Bundle:
        return self._with_bucket(
            lambda bucket: self._random.choice(
                [bucket.astype(np.int16), bucket.reshape(1, -1), bucket.tobytes(), None]
            )
        )

    def _drop(self) -> Bundle:
        manifest, buckets = self._good
        index = self._random.randrange(len(buckets))
        return manifest, buckets[:index] + buckets[index + 1 :]

    def _add(self) -> Bundle:
        manifest, buckets = self._good
        return manifest, [*buckets, self._random.choice(buckets)]

    def _reorder(self) -> Bundle:
        manifest, buckets = self._good
        first, second = self._random.sample(range(len(buckets)), 2)
        shuffled = list(buckets)
        shuffled[first], shuffled[second] = buckets[second], buckets[first]
        return manifest, shuffled

    def _replay(self) -> Bundle:
        return self._old

    def _old_bytes(self) -> Bundle:
        return self._good[0], self._old[1]

    def _foreign_manifest(self) -> Bundle:
        return self._other[0], self._good[1]

    def _wrong_base(self) -> Bundle:
        return self._sealed(base_digest=f"{self._random.getrandbits(128):032x}")

    def _wrong_kind(self) -> Bundle:
        kinds = {"full", "lora", "ema"} - {self._good[0].kind}
        return self._sealed(kind=self._random.choice(sorted(kinds)))

    def _unbound(self) -> Bundle:
        num_bound = self._good[0].num_bound
        others = [n for n in (0, num_bound - 1, num_bound + 1, 10**6) if n != num_bound and n >= 0]
        return self._sealed(num_bound=self._random.choice(others))

    def _wrong_dtype(self) -> Bundle:
        return self._with_tensor(dtype=self._random.choice(["bfloat16", "float16", "int8", "x"]))

    def _other_dtype(self) -> Bundle:
        """float32 [..., n] as bfloat16 [..., 2 n]: every size fits, and no number is right."""
        entry = self._entry(with_shape=True)
        shape = (*entry.shape[:-1], 2 * entry.shape[-1])
        return self._replacing(entry, replace(entry, dtype="bfloat16", shape=shape))

    def _rename(self) -> Bundle:
        return self._with_tensor(name=f"blocks.{self._random.randrange(99)}.attn9.to_q.weight")

    def _swap_names(self) -> Bundle:
        """Two tensors of one shape trade names: sizes, counts and digests of buckets all fit.

        Only the learner could do this; the manifest's digest keeps everybody else from it.
        """
        tensors = list(self._good[0].tensors)
        pairs = [
            (a, b)
            for a in range(len(tensors))
            for b in range(a)
            if tensors[a].shape == tensors[b].shape
        ]
        a, b = self._random.choice(pairs)
        first, second = tensors[a], tensors[b]
        tensors[a] = replace(first, name=second.name)
        tensors[b] = replace(second, name=first.name)
        return replace(self._good[0], tensors=tuple(tensors)), self._good[1]

    def _swap_shape(self) -> Bundle:
        """[n, m] as [m, n]: the bytes are all there, and in another order."""
        entries = [t for t in self._good[0].tensors if len(set(t.shape)) > 1]
        entry = self._random.choice(entries)
        return self._replacing(entry, replace(entry, shape=entry.shape[::-1]))

    def _duplicate(self) -> Bundle:
        manifest, buckets = self._good
        entry = self._random.choice(manifest.tensors)
        last = max(t.bucket for t in manifest.tensors)
        again = replace(entry, bucket=last, offset=manifest.buckets[last].num_bytes - 64)
        tensors = (*manifest.tensors, self._random.choice([again, entry]))
        return sealed(manifest, tensors=tensors), buckets

    def _lose_tensor(self) -> Bundle:
        manifest, buckets = self._good
        index = self._random.randrange(len(manifest.tensors))
        tensors = manifest.tensors[:index] + manifest.tensors[index + 1 :]
        return sealed(manifest, tensors=tensors), buckets

    def _move(self) -> Bundle:
        return self._with_tensor(
            self._random.choice(["bucket", "offset"]), self._random.choice([-1, 10**7])
        )

    def _overlap(self) -> Bundle:
        """A tensor starts inside the one before it."""
        entries = [t for t in self._good[0].tensors if t.offset > 0]
        entry = self._random.choice(entries)
        return self._replacing(entry, replace(entry, offset=max(entry.offset - 64, 0) // 64 * 64))

    def _swap_digests(self) -> Bundle:
        manifest, buckets = self._good
        first, second = self._random.sample(range(len(buckets)), 2)
        entries = list(manifest.buckets)
        entries[first] = replace(entries[first], digest=manifest.buckets[second].digest)
        entries[second] = replace(entries[second], digest=manifest.buckets[first].digest)
        return sealed(manifest, buckets=tuple(entries)), buckets

    def _unsealed(self) -> Bundle:
        """A field changes and the digest does not."""
        manifest, buckets = self._good
        change: dict[str, Any] = self._random.choice(
            [
                {"version": manifest.version + 5},
                {"incarnation": manifest.incarnation + 1},
                {"parent_version": 0},
                {"canary_tolerance": 1e9},
                {"digest": "0" * 32},
                {"tensors": manifest.tensors[::-1]},
                {"buckets": manifest.buckets[:-1]},
            ]
        )
        return replace(manifest, **change), buckets

    def _sealed(self, **changes: Any) -> Bundle:
        return sealed(self._good[0], **changes), self._good[1]

    def _entry(self, *, with_shape: bool = False) -> Any:
        entries: Sequence[Any] = self._good[0].tensors
        return self._random.choice([t for t in entries if t.shape or not with_shape])

    def _with_tensor(self, field: str = "", value: Any = None, **changes: Any) -> Bundle:
        entry = self._entry()
        return self._replacing(entry, replace(entry, **(changes or {field: value})))

    def _replacing(self, entry: Any, changed: Any) -> Bundle:
        manifest, buckets = self._good
        tensors = tuple(changed if t is entry else t for t in manifest.tensors)
        return sealed(manifest, tensors=tensors), buckets
