"""What a text names: objects, how many, in which colour, what they do, and what the camera does.

Word lists and neighbourhood, no grammar: a colour or a number belongs to the next noun of the
lexicon within a few words. Used on both texts alike, so what is overlooked in one is overlooked in
the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rlvid.enhancement.lexicon import Lexicon

MANY = "many"
"""Count of a plural without a number."""
MODIFIERS_BACK = 5
"""Words before a noun among which its colour and number are looked for."""
CAMERA_BACK, CAMERA_AHEAD = 5, 2
"""Words before and after a move among which a camera must be named."""
DIRECTION_AHEAD = 4
NEGATION_BACK = 3

_WORD = re.compile(r"[^\W_]+(?:['-][^\W_]+)*|[.,;:!?]")
_ENDS = frozenset(".;:!?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mention:
    """One thing that a text names."""

    kind: str
    """"object", "count", "colour", "camera", "motion" or "direction"."""
    value: str
    """Lemma; a count is its digits or `MANY`; a camera's may have a direction: "pan left"."""
    of: str = ""
    """Object that a count or a colour belongs to; "" where none is near."""
    is_insisted: bool = True
    """False where it is only implied: "a ball" is one ball, but "the ball" drops nothing."""

    def __str__(self) -> str:
        return f"{self.kind} {self.value}" + (f" of {self.of}" if self.of else "")


def mentions(text: str, lexicon: Lexicon) -> tuple[Mention, ...]:
    """Return what the text names, each once, in the order of the kinds; what is negated is not."""
    words = split_words(text)
    used: set[int] = set()
    found = list(_camera(words, lexicon, used))
    found += _things(words, lexicon, used)
    found += _rest(words, lexicon, used)
    return tuple(dict.fromkeys(found))


def split_words(text: str) -> list[str]:
    """Return words in lower case and the marks between them; "dog's" is "dog"."""
    plain = text.lower().replace("\u2019", "'").replace("close up", "close-up")
    return [word.removesuffix("'s") for word in _WORD.findall(plain)]


def _camera(words: Sequence[str], lexicon: Lexicon, used: set[int]) -> Iterator[Mention]:
    """Yield what the camera does; marks the words that say so as used."""
    for place, word in enumerate(words):
        move = lexicon.moves.get(word)
        if move is None:
            continue
        direction = _direction_of(words, place, lexicon)
        next_to_it = direction == place + 1 and move != lexicon.still
        if not (word in lexicon.clear_moves or next_to_it or _near_camera(words, place, lexicon)):
            continue
        used.add(place)
        value = move
        if direction is not None and move != lexicon.still and move not in lexicon.framings:
            used.add(direction)
            value = f"{move} {lexicon.move_directions[words[direction]]}"
        if not _is_negated(words, place, lexicon):
            yield Mention(kind="camera", value=value)


def _things(words: Sequence[str], lexicon: Lexicon, used: set[int]) -> Iterator[Mention]:
    """Yield objects with their counts and colours."""
    for place, word in enumerate(words):
        lemma = lexicon.objects.get(word)
        is_modifier = place + 1 < len(words) and words[place + 1] in lexicon.objects
        if lemma is None or is_modifier or place in used:
            continue
        modifiers = list(_modifiers(words, place, lexicon))
        if _is_negated(words, min([place, *modifiers]), lexicon):
            used.update(modifiers)
            continue
        yield Mention(kind="object", value=lemma)
        count = MANY if word in lexicon.plurals else ""
        for index in modifiers:
            if index in used:
                continue
            token = words[index]
            if token in lexicon.colours:
                yield Mention(kind="colour", value=lexicon.colours[token], of=lemma)
            elif token in lexicon.articles:
                count = count or "1"
                continue
            else:
                count = number_of(token, lexicon) or count
            used.add(index)
        if count:
            insisted = count != MANY and not _is_article_count(words, modifiers, lexicon)
            yield Mention(kind="count", value=count, of=lemma, is_insisted=insisted)


def _rest(words: Sequence[str], lexicon: Lexicon, used: set[int]) -> Iterator[Mention]:
    """Yield colours and numbers of no object, motions and directions."""
    for place, word in enumerate(words):
        if place in used or _is_negated(words, place, lexicon):
            continue
        number = number_of(word, lexicon)
        if word in lexicon.colours:
            yield Mention(kind="colour", value=lexicon.colours[word])
        elif word in lexicon.motions:
            yield Mention(kind="motion", value=lexicon.motions[word])
        elif number and number != "1":
            yield Mention(kind="count", value=number)
        elif word in lexicon.move_directions and _says_whereto(words, place, lexicon):
            yield Mention(kind="direction", value=lexicon.move_directions[word])


def number_of(word: str, lexicon: Lexicon) -> str:
    """Return the digits of a number word; "" for any other word."""
    return lexicon.numbers.get(word, word if word.isascii() and word.isdigit() else "")


def _modifiers(words: Sequence[str], place: int, lexicon: Lexicon) -> Iterator[int]:
    """Yield the places of colours, numbers and articles before a noun, the nearest first."""
    for index in range(place - 1, max(place - 1 - MODIFIERS_BACK, -1), -1):
        word = words[index]
        before = words[index - 1] if index else ""
        if word in lexicon.colours:
            yield index
        elif number_of(word, lexicon) or word in lexicon.articles:
            yield index
            return
        elif word == "of" and number_of(before, lexicon):
            yield index - 1
            return
        elif word == "and" and before in lexicon.colours:
            continue
        elif (
            word in lexicon.stops
            or word in _ENDS
            or (word in lexicon.objects and index != place - 1)
        ):
            return


def _is_article_count(words: Sequence[str], modifiers: Sequence[int], lexicon: Lexicon) -> bool:
    return not any(number_of(words[index], lexicon) for index in modifiers)


def _direction_of(words: Sequence[str], place: int, lexicon: Lexicon) -> int | None:
    """Return the place of the direction that follows a move in its clause, if there is one."""
    for index in range(place + 1, min(place + 1 + DIRECTION_AHEAD, len(words))):
        word = words[index]
        if word in _ENDS or word in lexicon.moves or word in lexicon.motions:
            return None
        # "pans in the dark" goes nowhere: "in" and "out" count right after the move alone.
        if word in lexicon.move_directions and (index == place + 1 or word not in ("in", "out")):
            return index
    return None


def _near_camera(words: Sequence[str], place: int, lexicon: Lexicon) -> bool:
    for step, reach in ((-1, CAMERA_BACK), (1, CAMERA_AHEAD)):
        for distance in range(1, reach + 1):
            index = place + step * distance
            if not 0 <= index < len(words) or words[index] in _ENDS:
                break
            if words[index] in lexicon.camera_words:
                return True
    return False


def _is_negated(words: Sequence[str], place: int, lexicon: Lexicon) -> bool:
    before = words[max(0, place - NEGATION_BACK) : place]
    clause = before[max((i + 1 for i, word in enumerate(before) if word in _ENDS), default=0) :]
    return any(word in lexicon.negations for word in clause)


def _says_whereto(words: Sequence[str], place: int, lexicon: Lexicon) -> bool:
    """Whether "left" is where something goes, and not whose hand: "to the left", "falls left"."""
    before = words[place - 1] if place else ""
    return words[place].endswith(("ward", "wards")) or before == "the" or before in lexicon.motions
