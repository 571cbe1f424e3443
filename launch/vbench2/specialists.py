"""Dimensions that no general model judges: what a specialist measures, and where it comes from.

A measurement is a small JSON object of its dimension's form; the benchmark's rule makes a value of
it. It comes from a file that somebody else's tool wrote, or from a class that is named. Without
either, the dimension is not judged.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pydantic import Field

from rlvid.config.base import Section
from rlvid.evaluation.vbench2 import rules
from rlvid.evaluation.vbench2.items import Item
from rlvid.plugins import resolve

BUILTIN: Mapping[str, str] = {"camera_path": "rlvid.launch.vbench2.camera:CameraPathSpecialist"}


class NotMeasuredError(RuntimeError):
    """There is no measurement of this video; it is left unjudged."""


class Specialist(Protocol):
    """Measures what a dimension's rule needs; built without arguments."""

    def measure(self, videos: Sequence[Path], item: Item) -> Mapping[str, Any]:
        """Return the fields of the dimension's form in `FORMS`.

        Args:
            videos: one, or for Diversity all of the prompt.

        Raises:
            NotMeasuredError: this video cannot be measured.
        """
        ...


class Diversity(Section):
    """Of all the videos of a prompt, see `rules.diversity`."""

    content: float = Field(ge=0.0)
    style: float = Field(ge=0.0)

    def value(self, item: Item) -> float | None:
        return rules.diversity(self.content, self.style)


class Instances(Section):
    """Whether each second shows a thing appear, vanish, fuse or split."""

    anomalies: tuple[bool, ...] = Field(min_length=1)

    def value(self, item: Item) -> float | None:
        return rules.instance_preservation(self.anomalies)


class CameraMotion(Section):
    """Labels that the tracks show, e.g. pan_left."""

    found: tuple[str, ...]

    def value(self, item: Item) -> float | None:
        return rules.camera_motion(item.label, self.found)


class HumanAnatomy(Section):
    """Counts over all frames."""

    num_people: int = Field(ge=0)
    num_abnormal: int = Field(ge=0)

    def value(self, item: Item) -> float | None:
        return rules.human_anatomy(self.num_people, self.num_abnormal)


class HumanIdentity(Section):
    """A frame each, null where not exactly one face was found."""

    similarities: tuple[float | None, ...]

    def value(self, item: Item) -> float | None:
        return rules.human_identity(self.similarities)


class MultiView(Section):
    """See `rules.multi_view_consistency`."""

    is_orbit: bool
    dynamic_degree: float = Field(ge=0.0)
    patch_match: float | None = Field(default=None, ge=0.0, le=1.0)

    def value(self, item: Item) -> float | None:
        return rules.multi_view_consistency(
            is_orbit=self.is_orbit,
            dynamic_degree=self.dynamic_degree,
            patch_match=self.patch_match,
        )


Form = Diversity | Instances | CameraMotion | HumanAnatomy | HumanIdentity | MultiView
FORMS: Mapping[str, type[Form]] = {
    "Diversity": Diversity,
    "Instance_Preservation": Instances,
    "Camera_Motion": CameraMotion,
    "Human_Anatomy": HumanAnatomy,
    "Human_Identity": HumanIdentity,
    "Multi-View_Consistency": MultiView,
}


def value_of(item: Item, measured: Mapping[str, Any], *, where: str) -> float | None:
    """Return the rule's value of a measurement; None excludes the video.

    Raises:
        ValueError: it is not of the dimension's form.
    """
    form = FORMS[item.dimension]
    try:
        # By JSON, where pydantic's strict mode takes a list for a tuple and no "1" for 1.
        return form.model_validate_json(json.dumps(dict(measured)), strict=True).value(item)
    except (TypeError, ValueError) as error:
        fields = ", ".join(form.model_fields)
        raise ValueError(f"{where}: expected the fields {fields}: {error}") from error


class MeasuredFile:
    """One dimension of a file of measurements: {dimension: {name of a video: fields}}."""

    def __init__(self, path: Path, measured: Mapping[str, Mapping[str, Any]]) -> None:
        self._path = path
        self._measured = measured

    def measure(self, videos: Sequence[Path], item: Item) -> Mapping[str, Any]:
        found = self.find(videos, item)
        if found is None:
            raise NotMeasuredError(f"{self._path}: {item.dimension}: nothing of {videos[0].name!r}")
        return found

    def find(self, videos: Sequence[Path], item: Item) -> Mapping[str, Any] | None:
        """Return what the file has of these videos: by the file's name, for Diversity by that of
        the prompt."""
        name = videos[0].name
        if item.dimension == "Diversity":
            name = name.rpartition("-")[0]
        return self._measured.get(name)


def load_measurements(path: Path) -> dict[str, MeasuredFile]:
    """Read a file of measurements, every entry checked.

    Raises:
        ValueError: no JSON, a dimension without a form, or an entry of another form.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"vbench2: measurements: {path}: cannot be read: {error}.") from error
    if not isinstance(tree, dict) or not all(isinstance(one, dict) for one in tree.values()):
        raise ValueError(f"vbench2: {path}: expected {{dimension: {{video: fields}}}}.")
    for dimension, measured in tree.items():
        _known(dimension, where=f"vbench2: {path}")
        for name, fields in measured.items():
            where = f"vbench2: {path}: {dimension}: {name!r}"
            if not isinstance(fields, dict):
                raise ValueError(f"{where}: expected an object, got {fields!r}.")
            value_of(Item(text=name, dimension=dimension), fields, where=where)
    return {dimension: MeasuredFile(path, measured) for dimension, measured in tree.items()}


def open_specialist(dimension: str, name: str) -> Specialist:
    """Return the specialist of a dimension: a name of `BUILTIN`, or package.module:Class.

    Raises:
        ValueError: no such dimension or class, or it has no `measure`.
    """
    where = f"vbench2: specialist of {dimension}"
    _known(dimension, where=where)
    found = resolve(name, BUILTIN, where=where)
    if not callable(found):
        raise ValueError(f"{where}: {name}: expected a class, got {type(found).__name__}.")
    make: Callable[[], Any] = found
    specialist = make()
    if not callable(getattr(specialist, "measure", None)):
        raise ValueError(f"{where}: {name}: expected a method measure(videos, item).")
    opened: Specialist = specialist
    return opened


def _known(dimension: str, *, where: str) -> None:
    if dimension not in FORMS:
        raise ValueError(
            f"{where}: {dimension!r} takes no measurement; expected one of {', '.join(FORMS)}."
        )
