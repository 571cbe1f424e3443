"""Word lists: what each word of a prompt names, read from a YAML file.

A word is looked up in any of its forms and gives its lemma, so "crimson spheres" and "red balls"
name the same. The lists are short on purpose: what is not in them is not guarded, and is not
guessed at either.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from rlvid.config.shipped_file import ShippedFile, read_shipped

FOLDER = Path(__file__).parent / "lexicons"
WHERE = "prompt_enhancement.reward.intent"

Words = dict[str, tuple[str, ...]]
"""Lemma to words that are taken for the same."""


class LexiconFile(ShippedFile):
    """One file of word lists."""

    objects: Words
    plurals: dict[str, str] = Field(default_factory=dict)
    """Of `objects`, where they are not regular."""
    colours: Words
    numbers: Words
    articles: tuple[str, ...]
    """Words that say one of a thing without insisting on it."""
    camera_words: tuple[str, ...]
    moves: Words
    """What a camera does."""
    clear_moves: tuple[str, ...] = ()
    """Forms of `moves` that can mean nothing else, so that no camera need be named near them."""
    framings: tuple[str, ...] = ()
    """Those of `moves` that say how a shot is framed and are no movement."""
    move_directions: Words
    camera_rivals: tuple[tuple[str, ...], ...]
    """Each excludes the others of its line; `still` excludes all that moves."""
    still: str
    """The one of `moves` that is no movement."""
    motions: Words
    """What things do."""
    negations: tuple[str, ...]
    stops: tuple[str, ...]
    """Going back from a noun, the words that belong to it end here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lexicon:
    """Every form of every word to its lemma, by what it names."""

    objects: Mapping[str, str]
    plurals: frozenset[str]
    """Forms of objects that say there are several."""
    colours: Mapping[str, str]
    numbers: Mapping[str, str]
    articles: frozenset[str]
    camera_words: frozenset[str]
    moves: Mapping[str, str]
    clear_moves: frozenset[str]
    framings: frozenset[str]
    move_directions: Mapping[str, str]
    motions: Mapping[str, str]
    negations: frozenset[str]
    stops: frozenset[str]
    still: str
    rivals: tuple[frozenset[str], ...]


def load_lexicon(name: str, synonyms: Mapping[str, Iterable[str]] | None = None) -> Lexicon:
    """Read a file by its path, or one of those that ship by its name, and add the synonyms.

    Raises:
        ValueError: no such file, a key that does not fit, a synonym of a word that is in no list,
            or one word that would name two things.
    """
    where = f"{WHERE}.lexicon"
    file = read_shipped(name, LexiconFile, folder=FOLDER, where=where, what="word lists")
    return _lexicon(_with_synonyms(file, synonyms or {}))


def plural_of(word: str) -> str:
    """Return the regular plural of an English noun."""
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return f"{word}es"
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return f"{word[:-1]}ies"
    return f"{word}s"


def _with_synonyms(file: LexiconFile, synonyms: Mapping[str, Iterable[str]]) -> LexiconFile:
    lists: dict[str, Words] = {
        key: dict(getattr(file, key)) for key in ("objects", "colours", "numbers", "motions")
    }
    for word, more in synonyms.items():
        homes = [words for words in lists.values() if word in words]
        if not homes:
            raise ValueError(
                f"{WHERE}.synonyms: {word!r} is no key of objects, colours, numbers or motions in "
                f"lexicon {file.name!r}: expected one of them, so that there is something to mean."
            )
        for words in homes:
            words[word] = (*words[word], *(text.lower() for text in more))
    return file.model_copy(update=lists)


def _lexicon(file: LexiconFile) -> Lexicon:
    objects = _forms(file.objects, "objects")
    plurals: dict[str, str] = {}
    for form, lemma in objects.items():
        plural = file.plurals.get(form, plural_of(form))
        # One sheep and many are written alike, so the word does not say how many there are.
        if plural not in objects:
            plurals[plural] = lemma
    moves = _forms(file.moves, "moves")
    known = {f"{move} {way}" for move in file.moves for way in file.move_directions}
    odd = {name for line in file.camera_rivals for name in line} - known - set(file.moves)
    odd |= {*file.framings, file.still} - set(file.moves)
    if odd:
        raise ValueError(
            f"{WHERE}.lexicon: camera_rivals, framings, still: {sorted(odd)} is no key of moves, "
            "with one of move_directions or without"
        )
    return Lexicon(
        objects={**objects, **plurals},
        plurals=frozenset(plurals),
        colours=_forms(file.colours, "colours"),
        numbers=_forms(file.numbers, "numbers"),
        articles=frozenset(file.articles),
        camera_words=frozenset(file.camera_words),
        moves=moves,
        clear_moves=frozenset(file.clear_moves),
        framings=frozenset(file.framings),
        move_directions=_forms(file.move_directions, "move_directions"),
        motions=_forms(file.motions, "motions"),
        negations=frozenset(file.negations),
        stops=frozenset(file.stops),
        still=file.still,
        rivals=tuple(frozenset(line) for line in file.camera_rivals),
    )


def _forms(words: Words, key: str) -> dict[str, str]:
    """Return form to lemma; ValueError where a form would be of two lemmas."""
    forms: dict[str, str] = {}
    for lemma, others in words.items():
        for form in (lemma, *others):
            if forms.setdefault(form, lemma) != lemma:
                raise ValueError(
                    f"{WHERE}.lexicon: {key}: {form!r} stands for both {forms[form]!r} and "
                    f"{lemma!r}: expected one meaning. Take it out of one of them."
                )
    return forms
