r"""Moses' rules for cutting text into words and putting it together, as regular expressions.

fairseq's hub interface and FSMT's tokenizer run sacremoses, a port of Moses' scripts. Here the
rules become replacements that a stock tokenizer makes, in which the lists that sacremoses has are
written out: what letters are, which abbreviations end with a full stop.

A replacement of `tokenizers` knows no groups: where a rule of Moses keeps what it matched, looking
ahead and behind stands for it, and `\K`, from where on the match is replaced.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from itertools import groupby
from typing import Any

Rules = list[tuple[str, str]]
"""Patterns and what they become, one after the other."""

# Languages whose text is cut or put together by rules of their own that are not written here.
OTHER_RULES = ("cs", "fi", "ja", "ko", "zh")

# For private use, so in no text: a blank that is to go, and the end of a quotation.
_GONE = "\ue000"
_CLOSED = "\ue001"


def sacremoses() -> Any:
    """The package, of which lists are taken and nothing is run.

    Raises:
        ValueError: It is not installed.
    """
    try:
        import sacremoses as found
    except ImportError as error:
        raise ValueError(
            "the rules by which this checkpoint's texts are cut into words are those of "
            "sacremoses; pip install 'vanilla_transformer[conversion]'. What is converted does not "
            "need it any more"
        ) from error
    return found


@cache
def _letters(name: str) -> str:
    """A list of characters of `MosesTokenizer`, as the inside of a character class."""
    return _ranges({ord(char) for char in getattr(sacremoses().MosesTokenizer, name)})


@cache
def _ideographs() -> str:
    """What words of Chinese and Japanese begin with, as the inside of a character class."""
    is_cjk = sacremoses().util.is_cjk
    return _ranges({code for code in range(0x1100, 0x30000) if is_cjk(chr(code))})


def _ranges(codes: set[int]) -> str:
    runs = groupby(enumerate(sorted(codes)), key=lambda item: item[1] - item[0])
    ranges = [[code for _, code in run] for _, run in runs]
    return "".join(f"\\x{{{run[0]:x}}}-\\x{{{run[-1]:x}}}" for run in ranges)


def _any_of(words: Iterable[str]) -> str:
    return "|".join(re.sub(r"([^\w\s])", r"\\\1", word) for word in words) or "(?!)"


# ------------------------------------------------------------------------------ from text to words


@cache
def unicode_punctuation() -> Rules:
    """FSMT's `replace_unicode_punct`, asked what it makes of every character."""
    from transformers.models.fsmt.tokenization_fsmt import replace_unicode_punct

    made: dict[str, list[str]] = {}
    for char in map(chr, range(0x80, 0x10000)):
        if (text := replace_unicode_punct(char)) != char:
            made.setdefault(text, []).append(char)
    # Full stops, the only ones that become two characters, take the blanks after them along.
    return [
        (f"[{''.join(chars)}]" + (r"\s*" if text == ". " else ""), text)
        for text, chars in made.items()
    ]


def punctuation(language: str) -> Rules:
    """`MosesPunctNormalizer`, then FSMT's `remove_non_printing_char`."""
    rules = [
        (r"\r", ""),
        (r"(?=\()", " "),
        (r"(?<=\))", " "),
        (r" +", " "),
        (r"(?<=\)) (?=[.!:?;,])", ""),
        (r"(?<=\() | (?=\))", ""),
        (r"(?<=\d) (?=%)", ""),
        (r" (?=[:;])", ""),
        (r"`", "'"),
        (r"''", ' " '),
        (r"[„“”]", '"'),
        (r"–", "-"),
        (r"—", " - "),
        (r" +", " "),
        (r"[´‘‚’]", "'"),
        (r"''", '"'),
        (r"…", "..."),
        (r"\xA0«\xA0|«\xA0?", '"'),
        (r"\xA0»\xA0?|»", '"'),
        (r"\xA0(?=[%:?!;])", ""),
        (r"(?<=nº|,)\xA0|\xA0(?=ºC|cm)", " "),
        (r" +", " "),
    ]
    if language == "en":
        # A quotation mark and what follows it change places: written after, deleted before.
        rules += [(r'"[,.]+\K', '"'), (r'"(?=[,.]+")', "")]
    elif language in ("de", "es", "fr"):
        rules += [
            (r',"', '",'),
            (r'(?<!\.)(?=\.+"[^<])', _CLOSED),
            (rf'{_CLOSED}\.+\K"', ""),
            (_CLOSED, '"'),
        ]
    comma = "," if language in ("de", "es", "cz", "cs", "fr") else "."
    # Of 1 2 3 Moses joins the first two: the digit between is of the first match.
    rules.append((r"(?<=\d)(?<!\d\xA0\d)\xA0(?=\d)", comma))
    return [(pattern.replace(r"\xA0", "\\x{a0}"), text) for pattern, text in rules] + [
        (r"\A\s+|\s+\z", ""),
        (r"\p{C}", ""),
    ]


def words(language: str) -> Rules:
    """`MosesTokenizer.tokenize`, splitting at hyphens and escaping for XML."""
    alnum, alpha, number, lower = map(_letters, ("IsAlnum", "IsAlpha", "IsN", "IsLower"))
    special = rf"[^{alnum}\s.'`,\-]"
    rules = [
        (r"[\s\x1c-\x1f]+", " "),
        (r"[\x00-\x1f]", ""),
        (r"\A +| +\z", ""),
        (f"(?={special})|(?<={special})", " "),
        (rf"(?<=[{alnum}])-(?=[{alnum}])", " @-@ "),
        (r"(?<!\.)(?=\.\.)|(?<=\.\.)(?!\.)", " "),
        (rf"(?<=[^{number}]),|,(?=[^{number}])|(?<=[{number}]),\z", " , "),
    ]
    if language in ("en", "fr", "it"):
        a, before = alpha, f"{alpha}{number}" if language == "en" else alpha
        # What a match of Moses ends with, the next cannot begin with: of 5'2'3 it splits at the
        # first, of a'b'c'd at the first and the third.
        taken = f"(?<![^{a}]'[^{a}])(?<![^{a}]')"
        free = f"(?:(?<![{a}]'[{a}])|(?<=[{a}]'[{a}]'[{a}]))"
        within = f"(?<=[{a}]){free}'(?=[{a}])"
        rules.append(
            (
                f"(?<=[^{a}]){taken}'(?=[^{a}])|(?<=[^{before}])'(?=[{a}])|(?<=[{a}])'(?=[^{a}])",
                " ' ",
            )
        )
        if language == "en":
            rules += [(within, " '"), (f"(?<=[{number}])'(?=s)", " '")]
        else:
            rules.append((within, "' "))
    else:
        rules.append((r"'", " ' "))
    prefixes = sacremoses().MosesTokenizer(language).NONBREAKING_PREFIXES
    mark = " #NUMERIC_ONLY#"
    numeric = [word.removesuffix(mark) for word in prefixes if word.endswith(mark)]
    others = [word for word in prefixes if not word.endswith(mark)]
    kept = "|".join(
        (
            r"\.+(?!\S)",
            rf"(?=\S*\.\S*\.(?!\S))\S*[{alpha}]",
            rf"(?:{_any_of(others)})\.(?!\S)",
            rf"(?:{_any_of(numeric)})\.\s+[0-9]",
            rf"\S+\.\s+[{lower}]",
        )
    )
    return [
        *rules,
        (rf"(?<!\S)(?!{kept})\S+\K(?=\.(?!\S))", " "),
        (r" +", " "),
        (r"\A +| +\z", ""),
        (r"\.'\z", " . '"),
        *(
            (char, f"&{name};")
            for char, name in (
                ("&", "amp"),
                (r"\|", "#124"),
                ("<", "lt"),
                (">", "gt"),
                ("'", "apos"),
                ('"', "quot"),
                (r"\[", "#91"),
                (r"\]", "#93"),
            )
        ),
    ]


# ------------------------------------------------------------------------------ from words to text


def text(language: str) -> Rules:
    """`MosesDetokenizer`: blanks that go are marked first, so that words stay apart meanwhile."""
    alpha = _letters("IsAlpha")
    currency = _letters("IsSc")
    start, end = f"(?<![^ {_GONE}])", f"(?![^ {_GONE}{_CLOSED}])"
    rules = [
        (r"\s+", " "),
        (r"\A | \z", ""),
        (r"(?:\A| )@-@(?: |\z)", "-"),
        *(
            (f"&(?:{names});", char)
            for names, char in (
                ("bar|#124", "|"),
                ("lt", "<"),
                ("gt", ">"),
                ("quot", '"'),
                ("apos", "'"),
                ("bra|#91", "["),
                ("ket|#93", "]"),
                ("amp", "&"),
            )
        ),
    ]
    quotes = {'"': '(?:"|[„“]+)', "'": "'", "`": "`", "``": "``", "''": "''"}
    for mark, quote in quotes.items():
        # The Jones' house: that one neither opens nor closes.
        opens = f"(?<!s ){quote}" if (language, mark) == ("en", "'") else quote
        rules.append((rf"{start}{opens}{end}.*?{start}{quote}{end}\K", _CLOSED))
    any_quote = "|".join(quotes.values())
    left = [rf"(?:{any_quote}){_CLOSED}", r"[,.?!:;\\%}\])]+"]
    right = [rf"[{currency}(\[{{¿¡]+"]
    if language == "en":
        rules.append((rf"(?<=s) (?='{end}(?!{_CLOSED}))", _GONE))
        left.append(rf"'[{alpha}][^ ]*")
        right.append(f"(?:(?<!s{_GONE})'|{quotes[chr(34)]}|``?|'')(?!{_CLOSED})")
    else:
        right.append(f"(?:{any_quote})(?!{_CLOSED})")
    stays = "(?!)"
    if language == "fr":
        stays = rf"[?!:;\\%]{end}"
        left[1] = f"(?!{stays}){left[1]}"
    if language in ("fr", "it", "ga"):
        right.append(rf"[^ ]*[{alpha}]'(?= [{alpha}])")
    if language != "ko":
        rules.append((f"(?<=[{_ideographs()}]) (?=[{_ideographs()}])", _GONE))
    return [
        *rules,
        (rf" (?=(?:{'|'.join(left)}){end})", _GONE),
        (rf"{start}(?:{'|'.join(right)})\K (?!{stays})", _GONE),
        (f"[{_GONE}{_CLOSED}]", ""),
        (r"^ +| +$", ""),
    ]
