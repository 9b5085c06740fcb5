"""The public checkpoints of this architecture that people know, for `convert --list` and cards.

Figures are their publishers' own, on the test set named, each with where it was published. Nothing
here was measured by this project.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedCheckpoint:
    """One public checkpoint, or a series of like ones.

    Attributes:
        name: Hub id, or the name its publisher gave.
        family: Name of the family that converts it.
        languages: From and to; `*` for the many of a series.
        licence: SPDX identifier.
        architecture: In short.
        bleu: Published figure and test set; None where none is known.
        reference: Where the figure, or else the checkpoint, is published.
    """

    name: str
    family: str
    languages: tuple[str, str]
    licence: str
    architecture: str
    bleu: str | None
    reference: str


_CARD = "its card on the Hub"
_DEEP = "Kasai et al. 2020, arXiv:2006.10369"
_SCALING = "Ott et al. 2018, arXiv:1806.00187"
_JOEYNMT = "README of github.com/joeynmt/joeynmt"

CATALOGUE: tuple[PublishedCheckpoint, ...] = (
    PublishedCheckpoint(
        "Helsinki-NLP/opus-mt-*", "marian", ("*", "*"), "Apache-2.0", "base, swish", None, _CARD
    ),
    PublishedCheckpoint(
        "Helsinki-NLP/opus-mt-en-de",
        "marian",
        ("en", "de"),
        "Apache-2.0",
        "base, swish",
        "37.0 newstest2016, 40.9 newstest2019",
        _CARD,
    ),
    PublishedCheckpoint(
        "Helsinki-NLP/opus-mt-de-en",
        "marian",
        ("de", "en"),
        "Apache-2.0",
        "base, swish",
        "34.0 newstest2014",
        _CARD,
    ),
    PublishedCheckpoint(
        "Helsinki-NLP/opus-mt-tc-big-en-fr",
        "marian",
        ("en", "fr"),
        "CC-BY-4.0",
        "big",
        "52.2 flores101-devtest, 52.4 multi30k_test_2016_flickr",
        _CARD,
    ),
    PublishedCheckpoint(
        "Helsinki-NLP/opus-mt-tc-big-fr-en",
        "marian",
        ("fr", "en"),
        "CC-BY-4.0",
        "big",
        "46.0 flores101-devtest, 49.7 multi30k_test_2016_flickr",
        _CARD,
    ),
    *(
        PublishedCheckpoint(
            f"facebook/wmt19-{source}-{target}",
            "fsmt",
            (source, target),
            "Apache-2.0",
            "big, d_ff 8192",
            f"{bleu} newstest2019, this single model",
            _CARD,
        )
        for source, target, bleu in (
            ("en", "de", "42.83"),
            ("de", "en", "41.35"),
            ("en", "ru", "33.47"),
            ("ru", "en", "39.20"),
        )
    ),
    *(
        PublishedCheckpoint(
            f"allenai/{name}",
            "fsmt",
            ("en", "de"),
            "Apache-2.0",
            f"base, {layers} layers",
            f"{tokenised} tokenised newstest2014, {bleu} sacreBLEU newstest2016",
            f"{_DEEP}; {_CARD}",
        )
        for name, layers, tokenised, bleu in (
            ("wmt16-en-de-dist-12-1", "12 + 1", "28.3", "27.52"),
            ("wmt16-en-de-dist-6-1", "6 + 1", "27.4", "27.11"),
            ("wmt16-en-de-12-1", "12 + 1", "26.9", "25.75"),
        )
    ),
    *(
        PublishedCheckpoint(
            f"allenai/wmt19-de-en-6-6-{size}",
            "fsmt",
            ("de", "en"),
            "Apache-2.0",
            size,
            f"{bleu} newstest2019",
            _CARD,
        )
        for size, bleu in (("base", "38.37"), ("big", "39.90"))
    ),
    PublishedCheckpoint(
        "transformer.wmt16.en-de",
        "fairseq",
        ("en", "de"),
        "MIT",
        "big",
        "29.3 tokenised newstest2014",
        _SCALING,
    ),
    PublishedCheckpoint(
        "transformer.wmt14.en-fr",
        "fairseq",
        ("en", "fr"),
        "MIT",
        "big",
        "43.2 tokenised newstest2014",
        _SCALING,
    ),
    PublishedCheckpoint(
        "transformer.wmt18.en-de",
        "fairseq",
        ("en", "de"),
        "MIT",
        "big, an ensemble: convert one of its files",
        None,
        "Edunov et al. 2018, arXiv:1808.09381",
    ),
    *(
        PublishedCheckpoint(
            f"transformer.wmt19.{pair}.single_model",
            "fairseq",
            (pair[:2], pair[3:]),
            "MIT",
            "big, d_ff 8192",
            None,
            "Ng et al. 2019, arXiv:1907.06616",
        )
        for pair in ("en-de", "de-en", "en-ru", "ru-en")
    ),
    *(
        PublishedCheckpoint(
            name, "joeynmt", (source, target), "Apache-2.0", architecture, bleu, _JOEYNMT
        )
        for name, source, target, architecture, bleu in (
            ("wmt14_ende", "en", "de", "60.5M parameters", "24.38 newstest2014"),
            ("wmt14_deen", "de", "en", "60.5M parameters", "30.51 newstest2014"),
            (
                "transformer_iwslt14_deen_bpe",
                "de",
                "en",
                "19M parameters",
                "33.73 lower-cased IWSLT14 test",
            ),
            ("transformer_jw300_afen", "af", "en", "46M parameters", "57.70 JW300 test, tok:intl"),
            ("transformer_jw300_enaf", "en", "af", "24M parameters", "47.31 JW300 test, tok:intl"),
            (
                "jparacrawl_enja",
                "en",
                "ja",
                "225M parameters",
                "17.66 newstest2020, tok:ja-mecab; 14.31 KFTT",
            ),
            (
                "jparacrawl_jaen",
                "ja",
                "en",
                "221M parameters",
                "14.97 newstest2020, tok:intl; 11.49 KFTT",
            ),
        )
    ),
    PublishedCheckpoint(
        "transformer_ende_test",
        "tensor2tensor",
        ("en", "de"),
        "Apache-2.0",
        "base, pre-norm",
        None,
        "Tensor2Tensor's public bucket, tensor2tensor-checkpoints",
    ),
)


def find_published(source: str) -> PublishedCheckpoint | None:
    """The entry of that name, if there is one."""
    return next((entry for entry in CATALOGUE if entry.name == source), None)
