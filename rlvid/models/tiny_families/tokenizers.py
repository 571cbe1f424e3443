"""Tiny tokenizers of the pipelines' own classes, with one token for each known word."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer, LlamaTokenizerFast, Qwen2Tokenizer

from rlvid.models.tiny_families.t5 import WORDS

_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML, the form of Qwen's instruct models."""


def clip_tokenizer(words: Iterable[str] = WORDS, *, max_length: int = 77) -> CLIPTokenizer:
    """Return a tokenizer that knows every byte, and each word as one token; the end mark pads."""
    letters = ByteLevel.alphabet()
    pieces = [[*word[:-1], f"{word[-1]}</w>"] for word in sorted(words)]
    symbols = [*letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary, merges = _merged(pieces, [*sorted(symbols), "<|startoftext|>", "<|endoftext|>"])
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=max_length)


def llama_tokenizer(
    template: str, words: Iterable[str] = WORDS, *, max_length: int
) -> LlamaTokenizerFast:
    """Return a tokenizer whose words are those of `template` and `words`; it pads on the right."""
    marks = ["<unk>", "<|begin_of_text|>", "<|end_of_text|>", "<pad>"]
    special = sorted(set(re.findall(r"<\|\w+\|>", template)))
    known = re.findall(r"\n\n| ?\w+|[^\w\s]", re.sub(r"<\|\w+\|>", "", template))
    known.remove(" by")  # two tokens: the template is then as long as for the real tokenizer
    known += [form for word in words for form in (word, f" {word}")]
    pieces = [list(word.replace(" ", "\N{LOWER ONE EIGHTH BLOCK}")) for word in known]
    symbols = {letter for piece in pieces for letter in piece} | set(map(chr, range(33, 127)))
    vocabulary, merges = _merged(pieces, [*marks, *special, *sorted(symbols)])
    return LlamaTokenizerFast(
        vocab=vocabulary,
        merges=merges,
        bos_token="<|begin_of_text|>",
        eos_token="<|end_of_text|>",
        pad_token="<pad>",
        add_bos_token=True,
        additional_special_tokens=special,
        add_prefix_space=False,
        padding_side="right",
        model_max_length=max_length,
    )


def qwen2_tokenizer(
    message: str, words: Iterable[str] = WORDS, *, max_length: int
) -> Qwen2Tokenizer:
    """Return a tokenizer that knows every byte and the words of `message` and `words`.

    It has ChatML as its template and pads on the right.
    """
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    space = "\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}"
    known = [*re.findall(r" ?\w+", message), "system", "user", "assistant"]
    known += [form for word in words for form in (word, f" {word}")]
    pieces = [[space * half] * 2 for half in (1, 2, 4)]  # eight spaces are one token
    pieces += [list(word.replace(" ", space)) for word in known]
    vocabulary, merges = _merged(pieces, [*special, *sorted(ByteLevel.alphabet())])
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary,
        merges=merges,
        additional_special_tokens=special[1:],
        padding_side="right",
        model_max_length=max_length,
    )
    tokenizer.chat_template = _CHAT_TEMPLATE
    return tokenizer


def _merged(
    pieces: Iterable[list[str]], first: Iterable[str]
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return the vocabulary and the merges that put each piece together from its left end.

    Args:
        pieces: the symbols of each word.
        first: symbols with the lowest ids.
    """
    tokens, merges = dict.fromkeys(first), dict[tuple[str, str], None]()
    for symbols in pieces:
        whole = symbols[0]
        for symbol in symbols[1:]:
            merges[whole, symbol] = None
            whole += symbol
            tokens[whole] = None
    return {token: number for number, token in enumerate(tokens)}, list(merges)
