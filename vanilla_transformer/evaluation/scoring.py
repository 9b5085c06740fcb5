"""Several systems' translations of one text: all metrics side by side, and whether they differ.

`score_systems` gives figures that go into JSON as they are; `format_scores` makes tables of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np

from . import load_metric
from .bleu_table import bleu_table, moses_tokenizer
from .sacrebleu_metric import check_segments
from .significance import Test, compare_examples, compare_systems, format_comparison

# Options of sacreBLEU's metric of the same name, up to the pluses.
_SACREBLEU: dict[str, dict[str, Any]] = {
    "bleu": {},
    "chrf": {},
    "chrf++": {"word_order": 2},
    "ter": {},
}
# Whose score is a mean over the segments, and what the scores of segments are to be multiplied by.
_MEANS = {"meteor": 1, "comet": 100}
METRICS = (*_SACREBLEU, *_MEANS)
USUAL_METRICS = ("bleu", "chrf", "ter")
_TITLES = {"chrf": "chrF", "chrf++": "chrF++", "ter": "TER", "meteor": "METEOR", "comet": "COMET"}
# Of sacreBLEU's command line.
_NUM_SAMPLES: dict[Test, int] = {"bootstrap": 1000, "randomisation": 10_000}


def score_systems(
    systems: Mapping[str, Sequence[str]],
    references: Sequence[str],
    *,
    metrics: Sequence[str] = USUAL_METRICS,
    language: str | None = None,
    sources: Sequence[str] | None = None,
    comet_model: str | None = None,
    num_samples: int | None = None,
) -> dict[str, Any]:
    """Score systems by several metrics, BLEU by all its conventions, and compare them.

    Args:
        systems: Translations by name of the system; the first is the baseline.
        references: One per segment.
        metrics: Out of `METRICS`.
        language: Of the translations: compounds are then split over Moses's tokens, and a language
            without blanks is also cut as sacreBLEU cuts it (see `bleu_table`).
        sources: What was translated, for COMET.
        comet_model: As the metric takes it.
        num_samples: Of each test; by default 1,000 of the bootstrap, 10,000 of randomisation.

    Returns:
        {"segments", "systems": {name: {column: {"score", "signature"}}}, "comparisons": one for
        each test, as `compare_systems` gives it}. With one system there is the bootstrap alone,
        for its intervals.

    Raises:
        ValueError: As `compare_systems`, an unknown metric, no sources for COMET, or a package that
            a metric or a language needs and that is not installed.
    """
    for name in metrics:
        if name not in METRICS:
            raise ValueError(f"metric ({name!r}) must be one of {', '.join(METRICS)}")
    if not metrics or not systems:
        raise ValueError("there is nothing to score; give one or more metrics and systems")
    for name, predictions in systems.items():
        try:
            check_segments(predictions, references)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    loaded: dict[str, dict[str, Any]] = {}
    if "meteor" in metrics:
        loaded["meteor"] = {}
    if "comet" in metrics:
        if sources is None:
            raise ValueError("COMET reads the source too; give it, or leave COMET out")
        loaded["comet"] = {"sources": sources}
        if comet_model is not None:
            loaded["comet"]["model"] = comet_model
    cut: dict[str, Any] = {"language": language}
    if language is not None:
        cut |= {"tokenize": moses_tokenizer(language), "tokenizer_name": f"moses.{language}"}

    table: dict[str, dict[str, Any]] = {name: {} for name in systems}
    scores_of: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(metrics):
        # Loaded once: COMET's model takes seconds.
        metric = (
            None if name == "bleu" else load_metric(name.rstrip("+"), **_SACREBLEU.get(name, {}))
        )
        for system, predictions in systems.items():
            if metric is None:
                for convention, row in bleu_table(predictions, references, **cut).items():
                    table[system][f"BLEU {convention}"] = row
                continue
            found = metric.compute(
                predictions=predictions, references=references, **loaded.get(name, {})
            )
            assert found is not None
            table[system][_TITLES[name]] = {key: found[key] for key in ("score", "signature")}
            if name in _MEANS:
                scores_of.setdefault(name, {})[system] = found

    tests: tuple[Test, ...] = get_args(Test) if len(systems) > 1 else ("bootstrap",)
    comparisons = []
    for test in tests:
        samples = _NUM_SAMPLES[test] if num_samples is None else num_samples
        compared: dict[str, Any] = {}
        for name in dict.fromkeys(metrics):
            if name in _SACREBLEU:
                # chrF++ is chrF with an option: not both in one call.
                plain = name.rstrip("+")
                one = compare_systems(
                    systems,
                    references,
                    test=test,
                    metrics={plain: _SACREBLEU[name]},
                    num_samples=samples,
                )
                compared[name] = one["metrics"][plain]
            else:
                compared[name] = _compare_means(name, scores_of[name], test, samples)
        comparisons.append(
            {
                "test": test,
                "samples": samples,
                "segments": len(references),
                "baseline": next(iter(systems)),
                "metrics": compared,
            }
        )
    return {"segments": len(references), "systems": table, "comparisons": comparisons}


def _compare_means(
    metric: str, found: Mapping[str, Mapping[str, Any]], test: Test, num_samples: int
) -> dict[str, Any]:
    """As the entry of a metric in what `compare_systems` gives."""
    scores = {
        system: _MEANS[metric] * np.asarray(one["scores"], dtype=np.float64)
        for system, one in found.items()
    }
    baseline = next(iter(scores))
    rows: dict[str, dict[str, Any]] = {}
    for system, own in scores.items():
        # The interval of the distance from nothing is that of the mean itself.
        alone = compare_examples(
            np.zeros_like(own), own, test="bootstrap", num_samples=_NUM_SAMPLES["bootstrap"]
        )
        rows[system] = {key: alone[key] for key in ("interval",)} | {"score": alone["system"]}
        if system != baseline:
            both = compare_examples(scores[baseline], own, test=test, num_samples=num_samples)
            rows[system] |= {key: both[key] for key in ("difference", "p_value")}
    return {"signature": found[baseline]["signature"], "systems": rows}


def format_scores(result: Mapping[str, Any]) -> str:
    """Lay out what `score_systems` found: a line a system, the signatures, the comparison."""
    systems = result["systems"]
    columns = list(next(iter(systems.values())))
    # BLEU's conventions stand under one head.
    width = max(6, *map(len, systems))
    titles = [column.removeprefix("BLEU ").split() for column in columns]
    widths = [max(6, *map(len, title)) for title in titles]
    lines = []
    for above in (True, False):
        cells = [" ".join(title[:-1]) if above else title[-1] for title in titles]
        lines.append(
            " " * width
            + "".join(f"  {cell:>{size}}" for cell, size in zip(cells, widths, strict=True))
        )
    for name, row in systems.items():
        cells = [f"{row[column]['score']:.2f}" for column in columns]
        lines.append(
            f"{name:<{width}}"
            + "".join(f"  {cell:>{size}}" for cell, size in zip(cells, widths, strict=True))
        )
    first = next(iter(systems.values()))
    lines += ["", *(f"{column}: {first[column]['signature']}" for column in columns)]
    return "\n".join(lines) + "\n\n" + format_comparison(*result["comparisons"])
