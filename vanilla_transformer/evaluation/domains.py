"""Translations by domain: news, literature, technical text, captions, each reported apart.

One average over unlike texts hides where a model fails. Beside each domain's scores stand those of
its short and long sentences and of its common and rare words, and the sentences that came out
worst. `domain_report` gives figures that go into JSON as they are; `format_domains` makes Markdown
of them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import sacrebleu

from .sacrebleu_metric import check_segments, reference_streams
from .significance import confidence_intervals

# Upper bounds of the classes, the last one being open.
LENGTHS = (10, 20, 30, 40, 50)
FREQUENCIES = (0, 9, 99, 999)

_WORD = re.compile(r"\w+(?:['’-]\w+)*")


class Domain(NamedTuple):
    """Translated text of one domain: per segment a source, a translation and its reference(s)."""

    sources: Sequence[str]
    predictions: Sequence[str]
    references: Sequence[str] | Sequence[Sequence[str]]


def domain_report(
    domains: Mapping[str, Domain | tuple[Any, Any, Any]],
    *,
    training_text: Iterable[str] | Counter[str] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    num_worst: int = 5,
    num_resamples: int = 1000,
) -> dict[str, dict[str, Any]]:
    """Score each domain as a whole, by sentence length and by rare words, and show the worst.

    Args:
        domains: By name.
        training_text: Source side of what the model was trained on, line by line, or its words as
            `count_words` counts them; without it there is no breakdown by rare words.
        options: Of sacreBLEU's metrics, by "bleu" and "chrf", such as {"bleu": {"tokenize":
            "none"}} for text that is tokenised already.
        num_worst: How many sentences to show of each domain: those of the lowest sentence chrF.
        num_resamples: Of the bootstrap intervals of a domain's BLEU and chrF.

    Returns:
        {domain: {"segments", "bleu", "chrf" (each {"score", "interval", "signature"}), "by_length":
        {class: {"segments", "bleu", "chrf"}}, "by_rarest_word": likewise (None without training
        text), "worst": [{"segment" (from 1), "source", "prediction", "references", "chrf"}]}}.
        Length is in words of the source. The rarest word is the one of the source that training
        met least often, numbers left out. A class without segments is not there; small ones say
        little.

    Raises:
        ValueError: No domain, or one without segments, of unequal lengths, or with what is no text.
    """
    if not domains:
        raise ValueError("there is no domain to report on; give one or more")
    frequencies = training_text
    if frequencies is not None and not isinstance(frequencies, Counter):
        frequencies = count_words(frequencies)
    chosen = {name: dict((options or {}).get(name, {})) for name in ("bleu", "chrf")}
    return {
        name: _report(name, Domain(*domain), frequencies, chosen, num_worst, num_resamples)
        for name, domain in domains.items()
    }


def split_domains(labels: Sequence[str], texts: Domain) -> dict[str, Domain]:
    """Sort text of several domains into them, in the order in which they come up.

    Args:
        labels: The domain of each segment.
        texts: All of the text.

    Raises:
        ValueError: Not one label for each segment, or one that is blank.
    """
    if not len(labels) == len(texts.sources) == len(texts.predictions) == len(texts.references):
        raise ValueError(
            f"there are {len(labels)} labels of domains, {len(texts.sources)} sources, "
            f"{len(texts.predictions)} translations and {len(texts.references)} references; give "
            "one of each for every segment"
        )
    rows: dict[str, list[int]] = {}
    for row, label in enumerate(labels):
        if not label.strip():
            raise ValueError(f"the label of segment {row + 1} is blank; name its domain")
        rows.setdefault(label.strip(), []).append(row)
    return {
        label: Domain(
            [texts.sources[row] for row in chosen],
            [texts.predictions[row] for row in chosen],
            [texts.references[row] for row in chosen],
        )
        for label, chosen in rows.items()
    }


def count_words(lines: Iterable[str]) -> Counter[str]:
    """How often each word occurs, without case, in text of any length, read once."""
    frequencies: Counter[str] = Counter()
    for line in lines:
        frequencies.update(_words(line))
    return frequencies


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _report(
    name: str,
    domain: Domain,
    frequencies: Counter[str] | None,
    options: Mapping[str, Mapping[str, Any]],
    num_worst: int,
    num_resamples: int,
) -> dict[str, Any]:
    predictions, references = check_segments(domain.predictions, domain.references)
    sources = list(domain.sources)
    if not sources or len(sources) != len(predictions):
        raise ValueError(
            f"domain {name!r} has {len(sources)} sources and {len(predictions)} translations; give "
            "as many of one as of the other, or leave it out"
        )
    scores = confidence_intervals(
        predictions, references, metrics=options, num_resamples=num_resamples
    )
    lengths = [len(_words(source)) for source in sources]
    rarest = None
    if frequencies is not None:
        rarest = [
            # Numbers are unlimited in number: nearly every one of five digits would be rare.
            min((frequencies[word] for word in _words(source) if not word.isdigit()), default=None)
            for source in sources
        ]

    def by_class(values: Sequence[int | None], bounds: Sequence[int]) -> dict[str, Any]:
        found = {}
        for label, low, high in _classes(bounds):
            rows = [i for i, one in enumerate(values) if one is not None and low <= one <= high]
            if rows:
                found[label] = _score(
                    [predictions[i] for i in rows], [references[i] for i in rows], options
                )
        return found

    sentence_chrf = sacrebleu.CHRF(**options["chrf"])
    each = [
        sentence_chrf.sentence_score(prediction, alternatives).score
        for prediction, alternatives in zip(predictions, references, strict=True)
    ]
    worst = sorted(range(len(each)), key=each.__getitem__)[:num_worst]
    return {
        "segments": len(sources),
        **{
            metric: {key: one[key] for key in ("score", "interval", "signature")}
            for metric, one in scores.items()
        },
        "by_length": by_class(lengths, LENGTHS),
        "by_rarest_word": None if rarest is None else by_class(rarest, FREQUENCIES),
        "worst": [
            {
                "segment": i + 1,
                "source": sources[i],
                "prediction": predictions[i],
                "references": references[i],
                "chrf": float(each[i]),
            }
            for i in worst
        ],
    }


def _classes(bounds: Sequence[int]) -> list[tuple[str, int, float]]:
    """Name, least and greatest value of each class; the first begins at 0."""
    edges = [-1, *bounds]
    classes: list[tuple[str, int, float]] = [
        (f"{low + 1}-{high}" if low + 1 < high else str(high), low + 1, high)
        for low, high in pairwise(edges)
    ]
    return [*classes, (f"{edges[-1] + 1}+", edges[-1] + 1, float("inf"))]


def _score(
    predictions: list[str], references: list[list[str]], options: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    streams = reference_streams(references)
    scorers = {
        "bleu": sacrebleu.BLEU(**options["bleu"]),
        "chrf": sacrebleu.CHRF(**options["chrf"]),
    }
    scores = {
        name: float(scorer.corpus_score(predictions, streams).score)
        for name, scorer in scorers.items()
    }
    return {"segments": len(predictions), **scores}


def format_domains(report: Mapping[str, Mapping[str, Any]]) -> str:
    """Lay out what `domain_report` found as Markdown: a table of all domains, then each by itself.

    Text of the sentences stands in code spans, so that nothing in it becomes markup.
    """
    rows = [["domain", "segments", "BLEU", "95 %", "chrF", "95 %"]]
    for name, one in report.items():
        rows.append([name, str(one["segments"])])
        for metric in ("bleu", "chrf"):
            low, high = one[metric]["interval"]
            rows[-1] += [f"{one[metric]['score']:.2f}", f"{low:.2f} to {high:.2f}"]
    lines = _table(rows)
    first = next(iter(report.values()))
    lines += ["", *(f"{first[metric]['signature']}  " for metric in ("bleu", "chrf"))]
    for name, one in report.items():
        lines += ["", f"## {name}"]
        for key, title in (
            ("by_length", "words in the source"),
            ("by_rarest_word", "rarest word, times in training"),
        ):
            if one[key]:
                rows = [[title, "segments", "BLEU", "chrF"]]
                rows += [
                    [label, str(row["segments"]), f"{row['bleu']:.2f}", f"{row['chrf']:.2f}"]
                    for label, row in one[key].items()
                ]
                lines += ["", *_table(rows)]
        if one["worst"]:
            lines += ["", "Worst sentences, by chrF:"]
        for row in one["worst"]:
            lines += [
                "",
                f"- segment {row['segment']}, chrF {row['chrf']:.1f}",
                f"  - source: {_code(row['source'])}",
                f"  - translation: {_code(row['prediction'])}",
                *(f"  - reference: {_code(text)}" for text in row["references"]),
            ]
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table of a head and rows, all but the first column to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append(f"| {' | '.join(cells)} |")
    rule = "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])])
    return [lines[0], f"|{rule}|", *lines[1:]]


def _code(text: str) -> str:
    """Text as a code span, fenced by more backquotes than it has in a row."""
    line = " ".join(text.split())
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    return f"{fence} {line} {fence}" if line else "(empty)"
