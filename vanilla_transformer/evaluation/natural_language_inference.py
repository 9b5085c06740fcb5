"""How good an inference is: one evaluation with its baselines, calibration and hard slices.

`evaluate_inference` takes a data set and the model's probabilities and gives figures that go into
JSON as they are; `format_report` makes them readable. All figures are in percent.

Accuracy alone hides what a classifier has learned: beside every figure stand what one constant
answer and what a look at the hypothesis alone would score (Gururangan et al. 2018; Poliak et al.
2018), with intervals, and the pairs are sliced by what makes them hard: by annotation where a set
has it, by the word lists below where not.

Shapes: N examples, C labels.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from datasets import Dataset

from ..data.inference_corpora import LABELS, TWO_WAY_LABELS
from .classification_scores import calibration, confusion_counts, label_scores, macro_f1

# Annotation that becomes slices, and what the slices are called.
_ANNOTATIONS = ("genre", "source", "heuristic", "subcase", "category", "language", "phenomena")

# English word lists. SNLI's published test set, among others, has lost its apostrophes: "doesnt".
_NEGATIONS = {
    *("no", "not", "never", "none", "nobody", "nothing", "nowhere", "neither", "nor", "without"),
    *("cannot", "dont", "doesnt", "didnt", "isnt", "arent", "wasnt", "werent", "hasnt", "havent"),
    *("hadnt", "wont", "wouldnt", "cant", "couldnt", "shouldnt", "mustnt", "neednt", "aint"),
}
_EVERY = {"all", "every", "each", "everyone", "everybody", "everything"}
_QUANTIFIERS = {
    "every, all": {*_EVERY, "both"},
    "some, any": {
        *("some", "someone", "somebody", "something"),
        *("any", "anyone", "anybody", "anything"),
    },
    "no, none": {"no", "none", "nobody", "nothing", "neither"},
    "many, most, few": {"many", "most", "few", "several", "much", "half"},
}
# Without "it", which as often as not refers to nothing: it rains, it is said that.
_PRONOUNS = {
    *("he", "him", "his", "himself", "she", "her", "hers", "herself", "its", "itself"),
    *("they", "them", "their", "theirs", "themselves"),
}
_WORD = re.compile(r"\w+(?:'\w+)*")


def evaluate_inference(
    dataset: Dataset,
    predictions: np.ndarray | Sequence[int],
    *,
    hypothesis_only: HypothesisOnly | None = None,
    num_bins: int = 10,
    confidence: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Score predictions over a whole set and over its slices.

    A set with two labels (HANS, RTE) is scored with a three-label model as the authors of HANS do
    (McCoy et al. 2019): the likeliest of the three is taken first, and neutral and contradiction
    then both count as not_entailment.

    Args:
        dataset: As `load_inference` gives it, with a gold label in every row.
        predictions: Probabilities [N, C], columns in the order of `LABELS` or `TWO_WAY_LABELS` (as
            `label_probabilities` gives them), or [N] predicted labels without probabilities, as
            positions in the data set's own names, -1 for an answer that is no label.
        hypothesis_only: The baseline of that name, fitted to what the model was trained on;
            without it the baseline is left out.
        num_bins: Bins of equal width for the calibration.
        confidence: Of the intervals: Wilson's for accuracy, bootstrap for macro-F1. Both take the
            examples as independent, which pairs that share a premise are not quite.
        num_resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        {"examples", "labels", "accuracy", "accuracy_interval", "macro_f1", "macro_f1_interval",
        "majority_accuracy", "majority_macro_f1", "hypothesis_only_accuracy",
        "hypothesis_only_macro_f1", "majority_label", "unanswered", "per_label": {label:
        {"precision", "recall", "f1", "examples"}}, "confusion" (rows gold, columns predicted, a
        last column for answers that are no label), "calibration" (None without probabilities),
        "slices": {group: {slice: the figures up to "hypothesis_only_macro_f1"}}}.

        The majority baseline answers the most frequent label of the very examples that are
        scored: no constant answer does better there. Macro-F1 is over the labels that are gold or
        predicted somewhere in those examples, as in scikit-learn.

    Raises:
        ValueError: No examples, a row without a gold label, predictions of another length or
            shape, or that are no probabilities; model or baseline of two labels for a set of
            three.
    """
    names = tuple(dataset.features["label"].names)
    gold = np.asarray(dataset["label"], dtype=np.int64)
    if not len(gold):
        raise ValueError("there is no example to evaluate; give a data set with rows")
    if (gold < 0).any():
        raise ValueError(
            f"row {int(np.argmax(gold < 0))} has no gold label; load the set without "
            "keep_unlabelled to evaluate it"
        )
    if not 0 < confidence < 1 or num_bins < 1 or num_resamples < 1:
        raise ValueError(
            f"confidence ({confidence}) must lie between 0 and 1, num_bins ({num_bins}) and "
            f"num_resamples ({num_resamples}) must be at least 1"
        )
    predicted, certainty = _predicted(predictions, gold, names)
    baseline = None
    if hypothesis_only is not None:
        baseline = hypothesis_only.predict(dataset["hypothesis"])
        baseline = _onto(baseline, hypothesis_only.names, names)

    generator = np.random.default_rng(seed)

    def figures(chosen: np.ndarray) -> dict[str, Any]:
        return _figures(
            gold[chosen],
            predicted[chosen],
            None if baseline is None else baseline[chosen],
            len(names),
            confidence,
            num_resamples,
            generator,
        )

    everything = np.ones(len(gold), dtype=bool)
    confusion = confusion_counts(gold, predicted, len(names))
    precision, recall, f1 = (100 * scores for scores in label_scores(confusion))
    return {
        "labels": list(names),
        **figures(everything),
        "majority_label": names[int(np.bincount(gold).argmax())],
        "unanswered": int((predicted < 0).sum()),
        "per_label": {
            name: {
                "precision": float(precision[label]),
                "recall": float(recall[label]),
                "f1": float(f1[label]),
                "examples": int((gold == label).sum()),
            }
            for label, name in enumerate(names)
        },
        "confusion": confusion.tolist(),
        "calibration": (
            None if certainty is None else calibration(certainty, predicted == gold, num_bins)
        ),
        "slices": {
            group: {name: figures(chosen) for name, chosen in slices.items() if chosen.any()}
            for group, slices in slice_masks(dataset).items()
        },
    }


def _predicted(
    predictions: np.ndarray | Sequence[int], gold: np.ndarray, names: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Predicted labels [N] among the set's own, and the probability [N] of each."""
    scores = np.asarray(predictions)
    if len(scores) != len(gold):
        raise ValueError(f"{len(scores)} predictions for {len(gold)} examples; give one for each")
    if scores.ndim == 1:
        if (
            not np.issubdtype(scores.dtype, np.integer)
            or not ((scores >= -1) & (scores < len(names))).all()
        ):
            raise ValueError(
                f"predicted labels must be whole numbers from -1 to {len(names) - 1} "
                f"({', '.join(names)}); for probabilities give [N, {len(names)}]"
            )
        return scores.astype(np.int64), None
    model_names = LABELS if scores.shape[1:] == (len(LABELS),) else TWO_WAY_LABELS
    if scores.shape[1:] != (len(model_names),):
        raise ValueError(f"probabilities of shape {scores.shape} must be [N, 3] or [N, 2]")
    scores = scores.astype(np.float64)
    sums = scores.sum(axis=1)
    # Sums of 16-bit probabilities miss 1 by less than this. A NaN fails every comparison.
    sound = (scores >= 0).all(axis=1) & (np.abs(sums - 1) < 0.01)
    if not sound.all():
        row = int(np.argmin(sound))
        raise ValueError(
            f"row {row}: {scores[row].tolist()} are no probabilities, which lie between 0 and 1 "
            "and sum to 1; label_probabilities makes them of logits"
        )
    predicted = _onto(scores.argmax(axis=1), model_names, names)
    if model_names != names:
        # Neutral and contradiction are one class now, and its probability is theirs together.
        scores = np.stack([scores[:, 0], scores[:, 1:].sum(axis=1)], axis=1)
    return predicted, scores[np.arange(len(scores)), predicted]


def _onto(labels: np.ndarray, names: tuple[str, ...], wanted: tuple[str, ...]) -> np.ndarray:
    """Labels of one kind of set as those of another."""
    if names != wanted and wanted != TWO_WAY_LABELS:
        raise ValueError(
            f"labels {', '.join(names)} cannot be told apart as {', '.join(wanted)}; "
            "a set with three labels needs a model and training data with three"
        )
    return labels if names == wanted else np.minimum(labels, 1)


# Figures


def _figures(
    gold: np.ndarray,
    predicted: np.ndarray,
    baseline: np.ndarray | None,
    num_labels: int,
    confidence: float,
    num_resamples: int,
    generator: np.random.Generator,
) -> dict[str, Any]:
    """The figures that the whole set and each slice have."""
    majority = np.full_like(gold, np.bincount(gold).argmax())
    confusion = confusion_counts(gold, predicted, num_labels)
    # Accuracy and F1 depend on the confusion matrix alone, so drawing examples with replacement
    # is drawing the matrix from a multinomial: the same distribution, and no loop.
    resampled = generator.multinomial(
        len(gold), confusion.ravel() / len(gold), size=num_resamples
    ).reshape(num_resamples, *confusion.shape)
    tail = 50 * (1 - confidence)
    figures: dict[str, Any] = {
        "examples": len(gold),
        "accuracy": _accuracy(gold, predicted),
        "accuracy_interval": wilson_interval(int((gold == predicted).sum()), len(gold), confidence),
        "macro_f1": float(macro_f1(confusion)),
        "macro_f1_interval": np.percentile(macro_f1(resampled), [tail, 100 - tail]).tolist(),
        "majority_accuracy": _accuracy(gold, majority),
        "majority_macro_f1": float(macro_f1(confusion_counts(gold, majority, num_labels))),
    }
    if baseline is not None:
        figures["hypothesis_only_accuracy"] = _accuracy(gold, baseline)
        figures["hypothesis_only_macro_f1"] = float(
            macro_f1(confusion_counts(gold, baseline, num_labels))
        )
    return figures


def _accuracy(gold: np.ndarray, predicted: np.ndarray) -> float:
    """Share of right answers in percent."""
    return 100 * float((gold == predicted).mean())


def wilson_interval(right: int, examples: int, confidence: float = 0.95) -> list[float]:
    """Interval in percent for a share of right answers (Wilson 1927).

    Unlike the share plus and minus so much it stays within 0 to 100, and is sound for a slice with
    few examples or none wrong.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = right / examples
    middle = share + z**2 / (2 * examples)
    reach = z * np.sqrt(share * (1 - share) / examples + z**2 / (4 * examples**2))
    # Rounding leaves a hair on the wrong side of 0 and of 1.
    bounds = np.clip(np.array([middle - reach, middle + reach]) / (1 + z**2 / examples), 0, 1)
    return [100 * float(bound) for bound in bounds]


class HypothesisOnly:
    """What the hypothesis gives away: naive Bayes over its words and pairs of neighbouring words.

    Multinomial naive Bayes with one count added to each word, every word counted once a
    hypothesis. It trains in seconds and needs no further package. Stronger readers of the
    hypothesis exist (fastText reaches 67 on SNLI, Gururangan et al. 2018, table 2): what this one
    finds is certainly there to be found.
    """

    def __init__(self, train: Dataset) -> None:
        """Count the words under each label.

        Raises:
            ValueError: If no row has a label.
        """
        labels = np.asarray(train["label"], dtype=np.int64)
        if not (labels >= 0).any():
            raise ValueError("the hypothesis-only baseline needs training rows with labels")
        self.names = tuple(train.features["label"].names)
        num_labels = len(self.names)
        self._columns: dict[str, int] = {}
        columns: list[int] = []
        rows: list[int] = []
        for hypothesis, label in zip(train["hypothesis"], labels.tolist(), strict=True):
            if label >= 0:
                features = _word_features(hypothesis)
                columns += [self._columns.setdefault(one, len(self._columns)) for one in features]
                rows += [label] * len(features)
        size = len(self._columns)
        cells = np.asarray(rows, dtype=np.int64) * size + np.asarray(columns, dtype=np.int64)
        counts = np.bincount(cells, minlength=num_labels * size).reshape(num_labels, size) + 1.0
        frequencies = np.bincount(labels[labels >= 0], minlength=num_labels)
        # A label that never occurs is never answered.
        with np.errstate(divide="ignore"):
            self._prior = np.log(frequencies / frequencies.sum())
        self._weights = np.log(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)).T

    def predict(self, hypotheses: Sequence[str]) -> np.ndarray:
        """The likeliest label [N] of each hypothesis; unknown words count for nothing."""
        predicted = np.empty(len(hypotheses), dtype=np.int64)
        for row, hypothesis in enumerate(hypotheses):
            known = [
                self._columns[one] for one in _word_features(hypothesis) if one in self._columns
            ]
            predicted[row] = (self._prior + self._weights[known].sum(axis=0)).argmax()
        return predicted


def _word_features(text: str) -> set[str]:
    """Words and pairs of neighbouring words."""
    words = _words(text)
    return {*words, *(f"{left} {right}" for left, right in itertools.pairwise(words))}


# Slices


def slice_masks(dataset: Dataset) -> dict[str, dict[str, np.ndarray]]:
    """Find the hard cases of a set.

    By annotation: `genre`, `source`, `heuristic`, `subcase`, `category`, `language` and
    `phenomena`, each a group, where the set has them; and, as HANS is reported, "heuristic and
    gold label".

    By rule, on lower-cased words, for English text (rows whose `language` is another one are in
    none of these):

    - "negation": not, n't, no, never, without, ... in the premise only, the hypothesis only, both
      or neither;
    - "quantifier": all, every, each, ...; some, any, ...; no, none, ...; many, most, few, ...; and
      a negation right before all, every, ...; each in either sentence, and none of these;
    - "coreference": a pronoun of the third person other than "it" in either sentence, or none;
    - "lexical overlap": share of the hypothesis's different words that are in the premise: all of
      them, half or more, or fewer; and the two cases in which overlap misleads, all words there
      but no entailment, fewer than half there and yet entailment.

    Words are not meaning. Of the pairs that TaxiNLI's annotators marked, these rules find 94% for
    negation, 68% for quantifiers and 47% for coreference, and of the pairs that they find, 39%, 22%
    and 13% are so marked: annotation, where there is some, is the better figure.

    Returns:
        {group: {slice: mask [N]}}. Slices of "quantifier" and of "phenomena" overlap.
    """
    groups: dict[str, dict[str, np.ndarray]] = {}
    for column in _ANNOTATIONS:
        if column in dataset.column_names:
            groups[column] = _annotated(dataset[column])
    label = np.asarray(dataset["label"])
    names = dataset.features["label"].names
    if "heuristic" in groups:
        groups["heuristic and gold label"] = {
            f"{heuristic}, {name}": mask & (label == number)
            for heuristic, mask in groups["heuristic"].items()
            for number, name in enumerate(names)
        }
    languages = dataset["language"] if "language" in dataset.column_names else None
    english = np.array([one in (None, "en") for one in languages or [None] * len(dataset)])
    groups |= {
        group: {name: mask & english for name, mask in slices.items()}
        for group, slices in _by_rule(dataset, label == 0).items()
    }
    return {
        group: slices for group, slices in groups.items() if any(m.any() for m in slices.values())
    }


def _annotated(values: Sequence[str | list[str] | None]) -> dict[str, np.ndarray]:
    """A slice for each value, by name; a row may have several."""
    rows: dict[str, list[int]] = {}
    for row, value in enumerate(values):
        for one in [value] if isinstance(value, str) else value or ():
            rows.setdefault(one, []).append(row)
    slices = {}
    for name in sorted(rows):
        slices[name] = np.zeros(len(values), dtype=bool)
        slices[name][rows[name]] = True
    return slices


def _by_rule(dataset: Dataset, entailed: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """The slices of a set that word lists make."""
    premises = [_words(text) for text in dataset["premise"]]
    hypotheses = [_words(text) for text in dataset["hypothesis"]]
    negated = [
        np.array([any(map(_is_negation, words)) for words in side])
        for side in (premises, hypotheses)
    ]
    both = [
        set(premise + hypothesis) for premise, hypothesis in zip(premises, hypotheses, strict=True)
    ]
    quantified = {
        name: np.array([not words.isdisjoint(members) for words in both])
        for name, members in _QUANTIFIERS.items()
    }
    quantified["not all, not every"] = np.array(
        [
            any(map(_is_not_every, [*itertools.pairwise(premise), *itertools.pairwise(hypothesis)]))
            for premise, hypothesis in zip(premises, hypotheses, strict=True)
        ]
    )
    pronoun = np.array([not words.isdisjoint(_PRONOUNS) for words in both])
    overlap = np.array(
        [
            len(set(hypothesis) & set(premise)) / max(len(set(hypothesis)), 1)
            for premise, hypothesis in zip(premises, hypotheses, strict=True)
        ]
    )
    return {
        "negation": {
            "in the premise only": negated[0] & ~negated[1],
            "in the hypothesis only": ~negated[0] & negated[1],
            "in both": negated[0] & negated[1],
            "in neither": ~negated[0] & ~negated[1],
        },
        "quantifier": {**quantified, "none of these": ~np.any(list(quantified.values()), axis=0)},
        "coreference": {"a pronoun": pronoun, "no pronoun": ~pronoun},
        "lexical overlap": {
            "all words": overlap == 1,
            "half or more": (overlap >= 0.5) & (overlap < 1),
            "fewer than half": overlap < 0.5,
            "all words, not entailed": (overlap == 1) & ~entailed,
            "fewer than half, entailed": (overlap < 0.5) & entailed,
        },
    }


def _words(text: str) -> list[str]:
    """Lower-cased words; an apostrophe within a word belongs to it."""
    return _WORD.findall(text.lower().replace("’", "'"))


def _is_negation(word: str) -> bool:
    """Whether a word negates: one of the list, or a contraction with not."""
    return word in _NEGATIONS or word.endswith("n't")


def _is_not_every(pair: tuple[str, str]) -> bool:
    """Whether two neighbouring words are "not every" or the like."""
    return _is_negation(pair[0]) and pair[1] in _EVERY


# Text


def format_report(result: Mapping[str, Any], title: str = "Natural language inference") -> str:
    """Make the figures readable, in 80 columns.

    Args:
        result: As `evaluate_inference` gives it.
        title: First line.
    """
    labels = result["labels"]
    lines = [title, "=" * min(len(title), 80), "", *_table({"all": result})]
    low, high = result["macro_f1_interval"]
    lines += [
        "",
        f"All in percent. F1 is the mean over the labels, for all {low:.1f}-{high:.1f}. majority",
        f"answers the commonest label, for all {result['majority_label']}; hyp. reads the",
        "hypothesis alone.",
    ]
    if result["unanswered"]:
        lines.append(f"{result['unanswered']} answers are no label and count as wrong")

    lines += ["", f"{'':<18}{'precision':>11}{'recall':>11}{'F1':>11}{'examples':>11}"]
    for name, row in result["per_label"].items():
        scores = "".join(f"{row[score]:>11.1f}" for score in ("precision", "recall", "f1"))
        lines.append(f"{name:<18}{scores}{row['examples']:>11}")

    columns = [*labels, "no label"] if result["unanswered"] else labels
    lines += ["", "gold \\ predicted".ljust(18) + "".join(f"{name:>15}" for name in columns)]
    for name, counts in zip(labels, result["confusion"], strict=True):
        cells = "".join(f"{count:>15}" for count in counts[: len(columns)])
        lines.append(f"{name:<18}{cells}")

    if result["calibration"]:
        error = result["calibration"]["expected_error"]
        lines += ["", f"calibration: expected error {error:.1f}"]
        lines.append(f"{'probability':<18}{'examples':>11}{'certainty':>11}{'accuracy':>11}")
        for one in result["calibration"]["bins"]:
            if one["examples"]:
                span = f"{one['from']:.0f} to {one['to']:.0f}"
                lines.append(
                    f"{span:<18}{one['examples']:>11}{one['certainty']:>11.1f}{one['accuracy']:>11.1f}"
                )
    for group, slices in result["slices"].items():
        lines += ["", *_table(slices, group)]
    return "\n".join(lines) + "\n"


def _table(rows: Mapping[str, Mapping[str, Any]], group: str = "") -> list[str]:
    """A header and a line for each set of figures, 80 wide."""
    lines = [
        f"{group:<28.28}{'examples':>9}{'accuracy':>9}{'interval':>13}"
        f"{'F1':>6}{'majority':>9}{'hyp.':>6}"
    ]
    for name, row in rows.items():
        low, high = row["accuracy_interval"]
        hypothesis = row.get("hypothesis_only_accuracy")
        # A long name ends in a mark rather than in the middle of the figures.
        shown = name if len(name) <= 28 else f"{name[:27]}~"
        lines.append(
            f"{shown:<28}{row['examples']:>9}{row['accuracy']:>9.1f}{f'{low:.1f}-{high:.1f}':>13}"
            f"{row['macro_f1']:>6.1f}{row['majority_accuracy']:>9.1f}"
            + (f"{'-':>6}" if hypothesis is None else f"{hypothesis:>6.1f}")
        )
    return lines
