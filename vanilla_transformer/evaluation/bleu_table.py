"""The same translations' BLEU by every convention, since figures by different ones do not compare.

Papers that followed tensor2tensor report BLEU over tokens with hyphenated words split, sacreBLEU's
default is the tokenizer of mteval-v13a: the same translations differ by more than a point.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sacrebleu

from .sacrebleu_metric import check_segments, reference_streams

_HYPHEN = re.compile(r"(\S)-(\S)")


def bleu_table(
    predictions: Sequence[str],
    references: Sequence[str] | Sequence[Sequence[str]],
    *,
    tokenize: Callable[[str], str] | None = None,
    tokenizer_name: str = "13a",
    language: str | None = None,
) -> dict[str, dict[str, Any]]:
    """Score translations by BLEU with each of the usual conventions.

    - "13a": sacreBLEU's default;
    - "intl": split at every punctuation mark and symbol of Unicode (mteval-v14);
    - "13a lower-cased": without case;
    - "compounds split": over tokens, the hyphen inside a word made a token of its own, as
      `utils/get_ende_bleu.sh` of tensor2tensor does it ("rich-text" -> "rich ##AT##-##AT## text",
      for comparison with GNMT and with Vaswani et al.);
    - "zh", "ja-mecab" or "ko-mecab": sacreBLEU's tokenizer for `language`, where it is not 13a.

    Args:
        predictions: One translation per segment, detokenised.
        references: Per segment one reference, or a list of one or more, detokenised.
        tokenize: What "compounds split" tokenises a segment with. That script uses Moses's
            `tokenizer.perl` after replacing Unicode punctuation: give that of sacremoses for
            figures like its own. By default it is 13a, which needs no further package.
        tokenizer_name: Of `tokenize`, for the signature.
        language: Of the translations, such as "zh".

    Returns:
        {convention: {"score", "signature"}}, in percent.

    Raises:
        ValueError: No segments, unequal lengths, a segment that is not text, or a language whose
            tokenizer is not installed.
    """
    segments, alternatives = check_segments(predictions, references)
    if not segments:
        raise ValueError("there is no segment to score; give some")
    if tokenize is None:
        # sacreBLEU hands out its tokenizers by way of a metric only.
        tokenize = sacrebleu.BLEU(tokenize="13a").tokenizer
    split_segments = [split_compounds(tokenize(text)) for text in segments]
    split_alternatives = [[split_compounds(tokenize(text)) for text in one] for one in alternatives]
    table = {
        "13a": _bleu(segments, alternatives),
        "intl": _bleu(segments, alternatives, tokenize="intl"),
        "13a lower-cased": _bleu(segments, alternatives, lowercase=True),
        # `force` silences a warning about full stops that stand alone, and changes no figure.
        "compounds split": _bleu(
            split_segments,
            split_alternatives,
            f"tok:{tokenizer_name}+hyphens",
            tokenize="none",
            force=True,
        ),
    }
    if language is not None:
        try:
            own = sacrebleu.BLEU(trg_lang=language).tokenizer.signature()
        except RuntimeError as error:
            # It says what to install.
            raise ValueError(" ".join(str(error).split())) from error
        if own not in table:
            table[own] = _bleu(segments, alternatives, trg_lang=language)
    return table


def moses_tokenizer(language: str) -> Callable[[str], str]:
    """What tensor2tensor's script tokenises with: Moses's scripts in sacremoses's version.

    Raises:
        ValueError: sacremoses is not installed, or Moses does not know the language.
    """
    try:
        from sacremoses import MosesPunctNormalizer, MosesTokenizer
    except ImportError as error:
        raise ValueError(
            "Moses's tokenizer needs sacremoses; pip install sacremoses, or name no language"
        ) from error
    replace = MosesPunctNormalizer(language).replace_unicode_punct
    tokenizer = MosesTokenizer(language)

    def tokenize(text: str) -> str:
        tokenized: str = tokenizer.tokenize(replace(text), return_str=True)
        return tokenized

    return tokenize


def split_compounds(text: str) -> str:
    """Make each hyphen between two characters that are no blanks the token ##AT##-##AT##.

    As in the script of tensor2tensor, of two hyphens with one character between them only the
    first is split.
    """
    return _HYPHEN.sub(r"\1 ##AT##-##AT## \2", text)


def _bleu(
    segments: list[str], alternatives: list[list[str]], tokenized: str = "", **options: Any
) -> dict[str, Any]:
    """Score and signature; `tokenized` says in it what happened to the text before."""
    scorer = sacrebleu.BLEU(**options)
    score = scorer.corpus_score(segments, reference_streams(alternatives))
    signature = str(scorer.get_signature())
    if tokenized:
        signature = signature.replace("tok:none", tokenized)
    return {"score": float(score.score), "signature": signature}


def format_bleu_table(table: Mapping[str, Mapping[str, Any]]) -> str:
    """Lay out what `bleu_table` found, a line for each convention."""
    return "".join(
        f"{name:<16}{row['score']:>7.2f}  {row['signature']}\n" for name, row in table.items()
    )
