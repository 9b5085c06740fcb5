"""How good a translation or an answer is, the same figures as the official scripts'.

BLEU, chrF and TER are those of sacreBLEU's command line, METEOR is NLTK's, exact match and F1 are
those of SQuAD. Each metric is a script beside this file that `evaluate.load` takes by its path,
without a network.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import evaluate

TRANSLATION_METRICS = ("bleu", "chrf", "ter")
METRICS = (*TRANSLATION_METRICS, "squad", "meteor", "classification", "comet")
# Those that take options when they are loaded.
_WITH_DEFAULTS = (*TRANSLATION_METRICS, "meteor")


def load_metric(name: str, **defaults: Any) -> evaluate.Metric:
    """Load one of this package's metrics through Evaluate, without a network.

    Args:
        name: "bleu", "chrf" (with `word_order=2` chrF++), "ter", "meteor", "comet", "squad" or
            "classification".
        **defaults: options of the sacreBLEU metric, or of METEOR, that hold for every `compute`
            unless given there again, such as `tokenize="none"`; a metric inside `evaluate.combine`
            takes them here. The others have none: theirs go to `compute`.

    Raises:
        ValueError: an unknown metric, or an option that the metric does not have.
    """
    if name not in METRICS:
        raise ValueError(f"metric ({name!r}) must be one of {', '.join(METRICS)}")
    # Evaluate would drop them in silence.
    if defaults and name not in _WITH_DEFAULTS:
        raise ValueError(f"{name} has no option {', '.join(map(repr, defaults))} for loading")
    # Evaluate brings `datasets` and pandas along: loaded when a score is asked for, not before.
    import evaluate

    # Segments stay in memory: no lock and no file that parallel runs could meet on. A score over
    # several processes' segments wants Evaluate's files: evaluate.load(path, num_process=...).
    path = str(Path(__file__).with_name(f"{name}.py"))
    return evaluate.load(path, keep_in_memory=True, **defaults)


def score_translations(
    predictions: Sequence[str],
    references: Sequence[str] | Sequence[Sequence[str]],
    *,
    lowercase: bool = False,
    tokenize: str = "13a",
) -> dict[str, dict[str, Any]]:
    """Score translations by BLEU, chrF and TER, each with sacreBLEU's signature.

    Args:
        predictions: one translation per segment.
        references: per segment one reference, or a list of one or more.
        lowercase: compare BLEU and chrF without case. TER ignores case either way, as it does by
            default in sacreBLEU; its signature says so.
        tokenize: sacreBLEU's tokenizer for BLEU; "none" for text that is tokenised already, as
            Multi30k's lower-cased tokenised protocol has it.

    Returns:
        {"bleu": {"score", "signature", ...}, "chrf": {...}, "ter": {...}}, scores in percent.

    Raises:
        ValueError: no segments, unequal lengths, a segment that is not text, unknown tokenizer.
    """
    options: dict[str, dict[str, Any]] = {
        # `force` silences a warning about full stops that stand alone, and changes no figure:
        # whoever says "none" has said that the text is tokenised.
        "bleu": {"lowercase": lowercase, "tokenize": tokenize, "force": tokenize == "none"},
        "chrf": {"lowercase": lowercase},
        "ter": {},
    }
    return {
        name: load_metric(name, **options[name]).compute(
            predictions=predictions, references=references
        )
        for name in TRANSLATION_METRICS
    }
