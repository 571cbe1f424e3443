"""The rule of every dimension: from what judges said of one video to its value.

A value lies in [0, 1]; None excludes the video from its dimension. Source of each rule: the file of
its dimension in VBench-2.0/vbench2 of the benchmark's repository.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

MIN_IDENTITY_FRAMES = 20
IDENTITY_SIMILARITY = 0.4
MIN_DYNAMIC_DEGREE = 5.0
MAX_DYNAMIC_DEGREE = 10.0
DIVERSITY_MAXIMUM = 17.712
"""Largest diversity that was met when the benchmark was made; its code calls it empirical."""
STYLE_WEIGHT = 1000.0


def all_yes(answers: Sequence[bool]) -> float:
    """Motion_Rationality, Dynamic_Attribute (first state, last state, change) and
    Dynamic_Spatial_Relationship (its first question is about the first half of the frames, its
    second about the last frame): 1 when every answer is yes."""
    _some(answers, "all_yes")
    return float(all(answers))


def gated_outcome(answers: Sequence[bool]) -> float | None:
    """Mechanics, Thermotics and Material: the first question is whether the scene is there.

    A "no" to it excludes the video; then the second alone decides, and any further one is asked
    but not counted. A prompt with one question has no gate.
    """
    _some(answers, "gated_outcome")
    if len(answers) == 1:
        return float(answers[0])
    return float(answers[1]) if answers[0] else None


def composition(items: Sequence[bool], *, one_creature: bool | None, needs_all: bool) -> float:
    """Composition: share of the items that are there, or 1 only for all of them.

    Args:
        items: n answers, one for each part of the creature or scene.
        one_creature: answer of the gate "only one creature"; None where the prompt has no gate. A
            "no" scores 1 / n, whatever the items.
        needs_all: the prompt counts only if every item is there.
    """
    _some(items, "composition")
    if one_creature is False:
        return 1.0 / len(items)
    return float(all(items)) if needs_all else sum(items) / len(items)


def human_clothes(*, one_person: bool, same_person: bool, same_clothes: bool) -> float | None:
    """Human_Clothes: excluded unless one person is there throughout; then both must hold."""
    return float(same_person and same_clothes) if one_person else None


def motion_order(described: Sequence[str], matches: Sequence[bool]) -> float | None:
    """Motion_Order_Understanding: both actions, in order.

    Args:
        described: actions that the judge found; fewer than two exclude the video.
        matches: whether each of the first two is the one asked for at its place.
    """
    if len(described) < 2:
        return None
    return float(len(matches) >= 2 and all(matches[:2]))


def human_interaction(*, interaction_matches: bool, more_than_one_person: bool) -> float:
    """Human_Interaction: what was asked for, between people."""
    return float(interaction_matches and more_than_one_person)


def matched_prefix(matches: Sequence[bool], num_expected: int) -> float:
    """Complex_Landscape and Complex_Plot: how far the story goes before its first miss.

    Args:
        matches: whether the n-th part described is the n-th part asked for.
        num_expected: parts asked for (5 landscapes, 4 or 5 plots).
    """
    if num_expected < 1:
        raise ValueError(f"matched_prefix: expected at least 1 part, got {num_expected}.")
    held = 0
    for match in matches[:num_expected]:
        if not match:
            break
        held += 1
    return held / num_expected


def instance_preservation(anomalies: Sequence[bool]) -> float:
    """Instance_Preservation: 0 when any stretch of a second shows a thing appear, vanish, fuse or
    split."""
    return float(not any(anomalies))


def human_anatomy(num_people: int, num_abnormal: int) -> float:
    """Human_Anatomy: 1 less the share of abnormal ones among the people of all frames.

    A video without people scores 1 in the benchmark, and here: it shows no wrong anatomy.
    """
    if not 0 <= num_abnormal <= num_people:
        raise ValueError(
            f"human_anatomy: expected 0 to {num_people} abnormal people, got {num_abnormal}."
        )
    return 1.0 - num_abnormal / num_people if num_people else 1.0


def human_identity(similarities: Sequence[float | None]) -> float | None:
    """Human_Identity: share of the later frames whose face is that of the first one.

    Args:
        similarities: a frame each, to the face of the first; None where not exactly one face was
            found. The first frame's own value only says whether it has one.
    """
    if not similarities or similarities[0] is None:
        return None
    later = [value for value in similarities[1:] if value is not None]
    if len(later) < MIN_IDENTITY_FRAMES:
        return None
    return sum(value >= IDENTITY_SIMILARITY for value in later) / len(later)


def camera_motion(wanted: str, found: Collection[str]) -> float:
    """Camera_Motion: the label asked for is among those that the tracks show."""
    return float(wanted in found)


def multi_view_consistency(
    *, is_orbit: bool, dynamic_degree: float, patch_match: float | None
) -> float | None:
    """Multi-View_Consistency: matched patches, weighted by how much the view moves.

    Excluded where the camera does not orbit, moves too little, or no patches could be compared.

    Args:
        dynamic_degree: mean over frame pairs of the largest 5 % of optical flow, px at 480 rows.
        patch_match: share of patches found again; None where there were none to compare.
    """
    if not is_orbit or dynamic_degree < MIN_DYNAMIC_DEGREE or patch_match is None:
        return None
    return min(dynamic_degree, MAX_DYNAMIC_DEGREE) * patch_match / MAX_DYNAMIC_DEGREE


def diversity(content: float, style: float) -> float:
    """Diversity of the videos of one prompt.

    Args:
        content: mean over pairs of the mean absolute difference of VGG-19's last features.
        style: the same of Gram matrices, mean over five layers.
    """
    value = (content + STYLE_WEIGHT * style) / 2.0 / DIVERSITY_MAXIMUM
    return min(max(value, 0.0), 1.0)


def _some(answers: Sequence[bool], rule: str) -> None:
    if not answers:
        raise ValueError(f"{rule}: expected at least one answer, got none.")
