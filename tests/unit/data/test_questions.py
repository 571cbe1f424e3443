"""Questions about tiny-world clips: their answers against the pixels and the tracks."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from rlvid.data.tiny_world import all_facts, render_clip, split_of, track_of
from rlvid.data.tiny_world.draw import COLOURS
from rlvid.data.tiny_world.ensemble import Actor, actor_track, render_ensemble
from rlvid.data.tiny_world.questions import (
    FIRST,
    KINDS,
    NO,
    NUMBERS,
    SECOND,
    YES,
    ask,
    compare,
    grade,
    kinds_of,
    open_questions,
)
from rlvid.data.tiny_world.situations import (
    FAMILIES,
    FLAWS,
    Situation,
    draw_situation,
    render_situation,
)

FACTS = {
    "object": "ball",
    "colour": "red",
    "motion": "rolls",
    "direction": "left",
    "camera": "still",
}


def situations(count: int, family: str | None = None) -> list[Situation]:
    return [draw_situation(seed, "train", family=family) for seed in range(count)]  # type: ignore[arg-type]


def colours_seen(clip: Tensor) -> set[str]:
    """Colours of the palette that fill at least five pixels of some frame, near exactly."""
    found = set()
    for name, rgb in COLOURS.items():
        distance = (clip * 255.0 - torch.tensor(rgb)[:, None, None]).abs().amax(dim=1)
        if int((distance < 6.0).sum(dim=(1, 2)).max()) >= 5:
            found.add(name)
    return found


def test_one_plain_actor_gives_the_pixels_of_render_clip() -> None:
    """Other scorers are calibrated on those pixels; clips of several objects share the drawing."""
    for index in (3, 200, 411):
        facts = all_facts()[index]
        expected = render_clip(facts, index)
        assert torch.equal(render_ensemble([Actor(facts=facts, seed=index)]), expected)


def test_the_colours_in_the_pixels_are_those_of_the_situation() -> None:
    """The record of a clip is worth nothing if an object of it cannot be seen."""
    for situation in situations(25, "count") + situations(25, "order"):
        named = {actor.facts["colour"] for actor in situation.actors}
        named |= {actor.later_colour for actor in situation.actors} - {""}
        assert colours_seen(render_situation(situation)) == named


def test_count_is_the_number_of_colours_seen() -> None:
    """Counting is checked against the pixels, not against the record the answer comes from."""
    rng = np.random.default_rng(0)
    for situation in situations(30, "count"):
        seen = len(colours_seen(render_situation(situation)))
        question = ask(situation, "count", rng, suffix="")[0]
        number = next(n for n in NUMBERS if n in question.text.replace("object", ""))
        assert (question.answer == YES) == (number == NUMBERS[seen - 1])


def test_direction_is_the_sense_of_the_first_movement() -> None:
    """Read off the true track, in world coordinates, so that a pan does not turn it round."""
    rng = np.random.default_rng(0)
    for situation in [s for s in situations(60, "single") if not s.breakage]:
        actor = situation.actors[0]
        track = track_of(actor.facts, actor.seed)
        moved = "right" if track.positions[4, 0] > track.positions[0, 0] else "left"
        question = ask(situation, "direction", rng)[0]
        assert (question.answer == YES) == (f"to the {moved}" in question.text)


def first_frame(clip: Tensor, colour: str) -> int:
    """First frame with at least five pixels of the colour, near exactly."""
    distance = (clip * 255.0 - torch.tensor(COLOURS[colour])[:, None, None]).abs().amax(dim=1)
    return int(torch.argmax(((distance < 6.0).sum(dim=(1, 2)) >= 5).int()))


def test_what_comes_first_is_what_the_pixels_show_first() -> None:
    """Order is read off the pixels: whose colour, or which of two colours, is seen first."""
    rng = np.random.default_rng(0)
    numbers = {1: 0, 2: 0}
    for situation in situations(60, "order"):
        clip = render_situation(situation)
        actors = situation.actors
        numbers[len(actors)] += 1
        if len(actors) == 1:
            names = {
                colour: colour for colour in (actors[0].facts["colour"], actors[0].later_colour)
            }
        else:
            names = {actor.facts["colour"]: actor.name for actor in actors}
        first, last = sorted(names, key=lambda colour: first_frame(clip, colour))
        assert first_frame(clip, last) - first_frame(clip, first) >= 4
        question = ask(situation, "order", rng, suffix="")[0]
        words = question.text.removesuffix("?")
        about_first = words.find(names[first]) if names[first] in words else len(words)
        about_last = words.find(names[last]) if names[last] in words else len(words)
        says_first = "after" not in words
        truth = (about_first < about_last) == says_first
        assert (question.answer == YES) == truth, (question, first, last)
        if len(actors) == 2:
            answers = [q.answer for q in open_questions(situation) if "first" in q.text]
            assert answers == [f"the {names[first]}"]
    assert min(numbers.values()) >= 10


def test_an_object_that_enters_is_not_there_before_and_moves_from_then_on() -> None:
    """The other one, alone, must look as if the late one did not exist."""
    late = Actor(facts={**FACTS, "colour": "blue"}, seed=3, delay=6, enters=True)
    early = Actor(facts=FACTS, seed=5)
    clip = render_ensemble([early, late])
    assert torch.equal(clip[:6], render_ensemble([early])[:6])
    assert first_frame(clip, "blue") == 6
    waiting = actor_track(Actor(facts=late.facts, seed=3, delay=6))[0]
    track = actor_track(late)[0]
    assert np.array_equal(track.positions, waiting.positions)
    assert not track.visible[:6].any()
    assert waiting.visible[:6].all()


def test_physics_is_real_for_exactly_the_clips_equal_to_the_true_one() -> None:
    """Broken clips differ in pixels from the true clip of the same facts; the others do not."""
    rng = np.random.default_rng(0)
    for situation in situations(40, "single"):
        actor = situation.actors[0]
        same = torch.equal(render_situation(situation), render_clip(actor.facts, actor.seed))
        assert (ask(situation, "physics", rng)[0].answer == YES) == same


def test_a_negation_has_other_words_and_the_other_answer() -> None:
    """A twin with the same answer would teach to ignore the "not"."""
    rng = np.random.default_rng(0)
    for situation in situations(80):
        for kind in kinds_of(situation):
            plain, negated = ask(situation, kind, rng)
            assert {plain.answer, negated.answer} == {YES, NO}
            assert plain.text != negated.text
            assert (plain.negated, negated.negated) == (False, True)


@pytest.mark.parametrize("kind", KINDS)
def test_yes_and_no_are_as_frequent(kind: str) -> None:
    """A judge must not gain by guessing; 600 questions put 0.08 at four standard deviations."""
    rng = np.random.default_rng(1)
    family = {"count": "count", "order": "order"}.get(kind, "single")
    able = [s for s in situations(150 if kind == "count" else 300, family) if kind in kinds_of(s)]
    answers = [
        ask(able[i % len(able)], kind, rng)[0].answer == YES
        for i in range(600 if kind != "physics" else len(able))
    ]
    margin = 4 * 0.5 / np.sqrt(len(answers))
    assert abs(np.mean(answers) - 0.5) < margin


def test_a_seed_gives_the_same_situation_and_questions() -> None:
    """A judge is measured on the same questions on every machine."""
    one, two = (draw_situation(17, "heldout") for _ in range(2))
    assert one == two
    asked = [ask(one, kinds_of(one)[0], np.random.default_rng(3)) for _ in range(2)]
    assert asked[0] == asked[1]


def test_every_object_is_of_the_split() -> None:
    """A held-out clip with an object of training facts would not be held out."""
    for split, family in product(("train", "heldout"), FAMILIES):
        for seed in range(20):
            situation = draw_situation(seed, split, family=family)  # type: ignore[arg-type]
            assert {split_of(actor.facts) for actor in situation.actors} == {split}


def test_a_broken_clip_is_asked_about_nothing_that_it_breaks() -> None:
    """Which way does a ball that jumps move? There is no sure answer."""
    broken = [s for s in situations(200, "single") if s.breakage]
    assert {s.breakage for s in broken} <= set(FLAWS)
    for situation in broken:
        assert set(kinds_of(situation)) <= {"object", "physics"}
        answers = {q.answer for q in open_questions(situation)}
        assert answers == {FLAWS[situation.breakage]}
    with pytest.raises(ValueError, match="no sure answer"):
        ask(broken[0], "direction", np.random.default_rng(0))


def test_the_grade_falls_by_one_for_each_wrong_attribute() -> None:
    """Graded against a caption with a known number of errors."""
    situation = Situation(family="single", actors=(Actor(facts=FACTS, seed=0),))
    truth = open_questions(situation)[-1].answer
    rng = np.random.default_rng(0)
    for _ in range(30):
        question = grade(situation, rng)
        assert (question.answer == "5") == (f'"{truth}"' in question.text)


def test_of_a_true_and_a_broken_clip_the_true_one_is_better() -> None:
    """Pairs are asked in both orders, so a judge cannot prefer a place."""
    actors = (Actor(facts=FACTS, seed=0),)
    true = Situation(family="single", actors=actors)
    broken = Situation(family="single", actors=actors, breakage="teleport")
    rng = np.random.default_rng(0)
    assert [q.answer for q in compare(true, broken, rng)] == [FIRST]
    assert [q.answer for q in compare(broken, true, rng)] == [SECOND]


def test_actors_with_two_cameras_are_refused() -> None:
    """One clip cannot pan both ways."""
    actors = [Actor(facts=FACTS, seed=0), Actor(facts={**FACTS, "camera": "pans left"}, seed=1)]
    with pytest.raises(ValueError, match="one camera"):
        render_ensemble(actors)
