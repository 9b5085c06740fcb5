"""Tensor2Tensor's subwords as a stock fast tokenizer.

So work its `SubwordTextEncoder` (`data_generators/text_encoder.py`) and `tokenizer.py`: a text is
cut where letters and digits meet anything else, single spaces between words are left out, each
token is escaped and ends with `_`, and is then cut into the longest subwords from its beginning.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

PAD, EOS = "<pad>", "<EOS>"

_ESCAPES = "\\_u;0123456789"
"""Characters that are always in the alphabet."""

_END = chr(sys.maxunicode)
"""Ends a token while its own `_` are being escaped: no character, so in no text."""

_NUMBER = chr(sys.maxunicode - 1)
"""Stands for the backslash before the number of a character; no character either."""

_WRITTEN = ((0, 0x530), (0x1E00, 0x2300))
"""Characters that come back from their numbers: Latin, Greek, Cyrillic, punctuation and signs.

Each takes a step of the decoder.
"""

_LAST_NUMBERED = 0x1FFFF
"""Up to here characters outside the alphabet become their numbers: the planes of living scripts,
symbols and emoji."""

_MAX_RANGES = 5_000
"""Of a class of characters: the regular expressions of tokenizers allow 10,000."""

_WORD = r"[\p{L}\p{N}]"
_OTHER = rf"[^\p{{L}}\p{{N}}{_END}]"


def read_subwords(path: Path) -> list[str]:
    """A vocabulary file: a subword a line, within quotes or not.

    Raises:
        ValueError: It is no vocabulary of subwords.
    """
    try:
        lines = path.read_text("utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}); get the vocabulary again") from error
    subwords = []
    for line in lines:
        line = line.rstrip()
        if len(line) > 1 and line[0] == line[-1] and line[0] in "'\"":
            line = line[1:-1]
        subwords.append(line)
    if subwords[:2] != [PAD, EOS]:
        raise ValueError(
            f"{path} does not begin with {PAD} and {EOS}: it is no vocabulary of Tensor2Tensor's "
            "subwords; put the one that came with the checkpoint there"
        )
    if len(set(subwords)) < len(subwords) or "" in subwords:
        raise ValueError(f"{path} has a subword twice, or an empty one; get the vocabulary again")
    characters = {c for subword in subwords[2:] for c in subword}
    lacking = sorted((characters | set(_ESCAPES)) - set(subwords))
    if lacking:
        raise ValueError(
            f"{path} has no subwords for {' '.join(lacking[:10])} alone, so that not every text "
            "could be written in it; get the vocabulary again"
        )
    return subwords


def subword_tokenizer(subwords: list[str]) -> tuple[PreTrainedTokenizerFast, list[str]]:
    """The tokenizer of a vocabulary, and remarks on what it does otherwise than its source.

    Texts end with `<EOS>`, as Tensor2Tensor's translation problems have it.
    """
    alphabet = ({c for subword in subwords for c in subword} | set(_ESCAPES)) - {"\n"}
    backend = Tokenizer(
        models.WordPiece(
            {subword: number for number, subword in enumerate(subwords)},
            unk_token=PAD,
            continuing_subword_prefix="",
            max_input_chars_per_word=1_000_000,
        )
    )
    backend.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(pattern, content)
            for pattern, content in [*_boundaries(), *_escapes(alphabet), (_END, "_")]
        ]
    )
    backend.pre_tokenizer = pre_tokenizers.Split("_", "merged_with_previous")
    backend.decoder = decoders.Sequence(
        [decoders.Fuse(), *(decoders.Replace(p, content) for p, content in _joins(alphabet))]
    )
    backend.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}", pair=f"$A {EOS} $B {EOS}", special_tokens=[(EOS, subwords.index(EOS))]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=EOS,
        model_input_names=["input_ids", "attention_mask"],
        padding_side="right",
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
    )
    return tokenizer, [
        f"A character that is not among the vocabulary's {len(alphabet)} is read as its number, as "
        "in Tensor2Tensor. Where the model writes such a number, Latin, Greek, Cyrillic letters, "
        "punctuation and signs come back as themselves, others as the number (\\26085;). One "
        f"beyond U+{_LAST_NUMBERED:X} is read as U+3013."
    ]


Rules = Iterable[tuple[str | Regex, str]]
"""Texts or regular expressions in order, and what takes the place of each match."""


def _boundaries() -> Rules:
    """Ends of tokens; a single space between two words is none of its own."""
    return [
        (Regex(rf"(?<={_WORD}) (?={_WORD})"), _END),
        (Regex(rf"(?<={_WORD})(?={_OTHER})|(?<={_OTHER})(?={_WORD})"), _END),
        (Regex(r"(?<=[\s\S])\z"), _END),
    ]


def _escapes(alphabet: set[str]) -> Rules:
    r"""`\` and `_` are escaped, and others by the decimal digits of their numbers.

    A digit at a time is put before those characters in whose number it stands in that place.
    """
    kept = "".join(_in_class(c) for c in sorted(alphabet | {_END}))
    unknown = f"[^{kept}]"
    beyond = Regex(f"[^{kept}\\x{{0}}-\\x{{{_LAST_NUMBERED:X}}}]")
    rules: list[tuple[str | Regex, str]] = [("\\", "\\\\"), ("_", "\\u"), (beyond, "〓")]
    numbers = [
        n for n in range(_LAST_NUMBERED + 1) if chr(n) not in alphabet and not 0xD800 <= n < 0xE000
    ]
    if not numbers:
        return rules
    rules.append((Regex(f"(?={unknown})"), "\\"))
    for place in reversed(range(len(str(_LAST_NUMBERED)))):
        for digit in range(10):
            having = [
                n for n in numbers if n >= 10**place * (place > 0) and n // 10**place % 10 == digit
            ]
            if having:
                rules.append((Regex(f"(?={_any_of(having)})"), str(digit)))
    return [*rules, (Regex(unknown), ";")]


def _in_class(character: str) -> str:
    """A character as it is written in a class of a regular expression."""
    if character >= "\xa0" or (character.isalnum() and character.isascii()):
        return character
    return f"\\x{{{ord(character):X}}}"


def _any_of(numbers: list[int]) -> str:
    """A regular expression of one character that is among these, whose numbers are sorted."""
    ranges: list[tuple[int, int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1] = ranges[-1][0], number
        else:
            ranges.append((number, number))
    parts = [
        _in_class(chr(first)) + (f"-{_in_class(chr(last))}" if last > first else "")
        for first, last in ranges
    ]
    classes = ("".join(parts[i : i + _MAX_RANGES]) for i in range(0, len(parts), _MAX_RANGES))
    return "|".join(f"[{members}]" for members in classes)


def _joins(alphabet: set[str]) -> Rules:
    """Tokens are put together, two words with a space between them, and unescaped."""
    rules: list[tuple[str | Regex, str]] = [
        (Regex(r"\A_+|(?<=_)_+|_+\z"), ""),
        # A backslash after an even number of others is no half of an escaped one.
        (Regex(r"(?<!\\)(?:\\\\)*\K\\(?=[0-9]+;)"), _NUMBER),
    ]
    for first, last in _WRITTEN:
        rules += [
            (f"{_NUMBER}{number};", chr(number))
            for number in range(first, last)
            if chr(number) not in alphabet
        ]
    return [
        *rules,
        (_NUMBER, "\\"),
        (Regex(rf"(?:\A|(?<=_))(?={_WORD})"), _END),
        (Regex(rf"{_END}[^_]*\K_(?={_END})"), " "),
        ("_", ""),
        (_END, ""),
        (Regex(r"(?<!\\)(?:\\\\)*\K\\u"), "_"),
        ("\\\\", "\\"),
    ]
