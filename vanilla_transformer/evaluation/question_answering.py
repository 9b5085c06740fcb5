"""How good answers are: exact match and F1 as the scripts of SQuAD and TriviaQA count them.

The official scripts compare answers without case, punctuation, articles and spacing (Rajpurkar et
al. 2016, section 6.1; SQuAD 2.0: Rajpurkar et al. 2018; TriviaQA: Joshi et al. 2017). The figures
are the same whether an answer was cut out of its context or written by a model. `squad.py` beside
this file is the same metric for Evaluate; it takes this file with it, which therefore imports
nothing of this package.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Version = Literal["1.1", "2.0"]
Normalization = Literal["squad", "triviaqa"]

MEASURES = ("exact_match", "f1", "precision", "recall")

# SQuAD joins what punctuation parts; TriviaQA leaves it apart, and knows three more marks.
_PUNCTUATION: dict[str, dict[int, Any]] = {
    "squad": str.maketrans("", "", string.punctuation),
    "triviaqa": str.maketrans(dict.fromkeys(string.punctuation + "‘’´", " ")),
}
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_QUESTION_WORDS = re.compile(
    r"\b(how (?:many|much)|how|what|when|where|which|who(?:m|se)?|why)\b", re.IGNORECASE
)


@dataclass(frozen=True)
class NoAnswerThreshold:
    """Above `threshold` a no-answer score means "no answer"; the rest is in percent with it."""

    threshold: float
    exact_match: float
    f1: float


def normalize_answer(text: str, normalization: Normalization = "squad") -> str:
    """Lower case, no punctuation, no English article, single blanks: in this order.

    The order matters and is that of the official scripts. SQuAD's (`normalize_answer` in
    evaluate-v1.1.py and -v2.0.py) take ASCII punctuation out: "an-other" loses its hyphen first and
    so keeps its "an". TriviaQA's (`normalize_answer` in evaluation/triviaqa_evaluation.py of
    mandarjoshi90/triviaqa) puts a blank where ASCII punctuation, an underscore among it, or one of
    ‘ ’ ´ stands: "an-other" becomes "other". Other punctuation stays.

    Raises:
        ValueError: An unknown normalization.
    """
    if normalization not in _PUNCTUATION:
        raise ValueError(f"normalization ({normalization!r}) must be 'squad' or 'triviaqa'")
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION[normalization])).split())


def score_answer(
    prediction: str,
    answers: Sequence[str],
    version: Version = "1.1",
    normalization: Normalization = "squad",
) -> dict[str, float]:
    """Score one prediction by the answer that suits it best, each measure from 0 to 1.

    Exact match and F1 are each the best over the answers, as the official scripts have them.
    Precision and recall, which those do not give, are of the answer with the best F1 (the first of
    several): the share of the prediction's words that are the answer's, and the other way round.

    Args:
        prediction: The text predicted; "" says that there is no answer.
        answers: The texts that are right; none where the question has no answer (version 2.0).
        version: The script to agree with. They differ on answers of which normalisation leaves
            nothing ("the"): 2.0 passes over them, in 1.1 nothing shares a word with nothing.
        normalization: See `normalize_answer`.

    Raises:
        ValueError: Version 1.1 and a question without answers, or an unknown normalization.
    """
    golds = [normalize_answer(answer, normalization) for answer in answers]
    if version == "2.0":
        golds = [gold for gold in golds if gold] or [""]
    if not golds:
        raise ValueError("a question without answers is scored by version='2.0' only")
    given = normalize_answer(prediction, normalization)
    best = (0.0, 0.0, 0.0)
    for gold in golds:
        overlap = _overlap(given, gold, version)
        if overlap[0] > best[0]:
            best = overlap
    return dict(zip(MEASURES, (float(given in golds), *best), strict=True))


def _overlap(given: str, gold: str, version: Version) -> tuple[float, float, float]:
    """F1, precision and recall of words, each counted as often as it occurs."""
    given_words, gold_words = given.split(), gold.split()
    if version == "2.0" and not (given_words and gold_words):
        # Nothing is the right answer to a question without one, and to no other.
        equal = float(given_words == gold_words)
        return equal, equal, equal
    shared = (Counter(given_words) & Counter(gold_words)).total()
    if shared == 0:
        return 0.0, 0.0, 0.0
    precision, recall = shared / len(given_words), shared / len(gold_words)
    # In this order of operations the scripts' figures come out to the last digit.
    return (2 * precision * recall) / (precision + recall), precision, recall


def evaluate_question_answering(
    references: Iterable[Mapping[str, Any]],
    predictions: Mapping[str, str],
    *,
    version: Version | None = None,
    normalization: Normalization = "squad",
    bootstrap_samples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Score predictions as a whole, by answer or no answer, and by question word.

    A question goes with the first of "how many" (and "how much"), "how", "what", "when", "where",
    "which", "who" (whom, whose) and "why" that it contains, wherever that stands; else with
    "other".

    Args:
        references: Questions with `id`, `answers` ({"text": [...]}) and, for the split by question
            word, `question`, as `load_question_answering` gives them.
        predictions: Text by id; "" says that there is no answer. Ids that the references lack are
            counted as `extra` and otherwise left aside, as the official scripts do.
        version: The official script to agree with, "1.1" or "2.0"; by default 2.0 if any question
            has no answer.
        normalization: "triviaqa" for the figures of TriviaQA's script, which extends SQuAD's of 1.1
            by its own `normalize_answer`. It scores against normalised aliases: what comes of the
            aliases that `load_question_answering` gives as answers. On TriviaQA's web domain it
            takes one prediction for each document, whose ids those are; on Wikipedia one for each
            question, whichever document it is from.
        bootstrap_samples: For the intervals, how often the questions are drawn with replacement;
            0 leaves the intervals out.
        seed: Of those draws: the same seed gives the same intervals.

    Returns:
        {"version", "normalization", "total", "missing", "extra", "exact_match", "f1", "precision",
        "recall", "exact_match_interval", "f1_interval", "has_answer", "no_answer": {...} (2.0),
        "by_question_word": {word: {...}}}: percentages, with 95 % intervals [low, high] of the
        percentile bootstrap over questions. The groups have "total" and the same measures. It
        goes into JSON as it is.

    Raises:
        ValueError: No question, an id twice, a prediction that is not text, a question without
            answers under version 1.1, or, under 2.0, questions without a prediction: its script
            leaves them out of the average, which flatters. The script of 1.1 scores them 0, and
            so does this, counting them as `missing`.
    """
    references = list(references)
    ids = _checked_ids(references)
    answers = [reference["answers"]["text"] for reference in references]
    if version is None:
        version = "1.1" if all(answers) else "2.0"
    if version not in ("1.1", "2.0"):
        raise ValueError(f"version ({version!r}) must be '1.1' or '2.0'")
    missing = [question_id for question_id in ids if question_id not in predictions]
    if missing and version == "2.0":
        raise ValueError(
            f"{len(missing)} questions have no prediction, {missing[0]!r} first; give each one, "
            '"" where the answer is that there is none'
        )
    scores = _scores(ids, answers, predictions, version, normalization)

    def summary(rows: np.ndarray) -> dict[str, Any]:
        return _summary(scores[rows], bootstrap_samples, seed)

    has_answer = np.array([bool(one) for one in answers])
    result: dict[str, Any] = {
        "version": version,
        "normalization": normalization,
        **_summary(scores, bootstrap_samples, seed),
        "missing": len(missing),
        "extra": len(set(predictions) - set(ids)),
    }
    if version == "2.0":
        for group, rows in (("has_answer", has_answer), ("no_answer", ~has_answer)):
            if rows.any():
                result[group] = summary(rows)
    if all("question" in reference for reference in references):
        words = np.array([question_word(reference["question"]) for reference in references])
        frequent = Counter(words.tolist()).most_common()
        result["by_question_word"] = {word: summary(words == word) for word, _ in frequent}
    return result


def question_word(question: str) -> str:
    """The kind of a question: its first question word, or "other"."""
    found = _QUESTION_WORDS.search(question)
    if found is None:
        return "other"
    word = found[1].lower()
    return {"how much": "how many", "whom": "who", "whose": "who"}.get(word, word)


def fit_no_answer_threshold(
    references: Iterable[Mapping[str, Any]],
    predictions: Mapping[str, str],
    no_answer_scores: Mapping[str, float],
    *,
    measure: Literal["exact_match", "f1"] = "f1",
) -> NoAnswerThreshold:
    """Find the no-answer score above which a question had better be left unanswered.

    As in the official script of SQuAD 2.0 every score that occurs is tried, on validation data
    only. Questions of equal score stay together, which that script does not see to.

    Args:
        references: Questions with `id` and `answers`.
        predictions: Text by id, before any threshold.
        no_answer_scores: By id, higher where "no answer" is likelier; any scale.
        measure: What to maximise.

    Returns:
        The lowest of the best thresholds: `apply_no_answer_threshold` takes it.

    Raises:
        ValueError: As `evaluate_question_answering`, and a question without a score.
    """
    references = list(references)
    ids = _checked_ids(references)
    for what, given in (("prediction", predictions), ("no-answer score", no_answer_scores)):
        lacking = [question_id for question_id in ids if question_id not in given]
        if lacking:
            raise ValueError(f"{len(lacking)} questions have no {what}, {lacking[0]!r} first")
    answers = [reference["answers"]["text"] for reference in references]
    answered = _scores(ids, answers, predictions, "2.0")[:, :2]
    unanswered = _scores(ids, answers, dict.fromkeys(ids, ""), "2.0")[:, :2]
    values = np.array([no_answer_scores[question_id] for question_id in ids], dtype=float)
    order = np.argsort(values, kind="stable")
    # Row n: the n questions of the lowest scores are answered, the others not.
    gains = np.cumsum((answered - unanswered)[order], axis=0)
    totals = unanswered.sum(axis=0) + np.vstack([np.zeros(2), gains])
    ordered = values[order]
    ends = np.append(0, np.flatnonzero(np.append(np.diff(ordered) > 0, True)) + 1)
    column = MEASURES.index(measure)
    # Rounded, so that sums which differ in their last bit only count as equal.
    best = ends[np.argmax(np.round(totals[ends, column], 9))]
    threshold = float(ordered[best - 1]) if best else float(ordered[0]) - 1.0
    exact_match, f1 = 100 * totals[best] / len(ids)
    return NoAnswerThreshold(threshold, float(exact_match), float(f1))


def apply_no_answer_threshold(
    predictions: Mapping[str, str], no_answer_scores: Mapping[str, float], threshold: float
) -> dict[str, str]:
    """Replace by "" the predictions whose no-answer score is above the threshold.

    Raises:
        ValueError: A prediction without a score.
    """
    lacking = [question_id for question_id in predictions if question_id not in no_answer_scores]
    if lacking:
        raise ValueError(f"{len(lacking)} predictions have no no-answer score: {lacking[0]!r}")
    return {
        question_id: "" if no_answer_scores[question_id] > threshold else text
        for question_id, text in predictions.items()
    }


def format_report(result: Mapping[str, Any]) -> str:
    """Lay out what `evaluate_question_answering` found as a table of 80 columns."""
    groups = {"all": result}
    groups |= {name: result[name] for name in ("has_answer", "no_answer") if name in result}
    groups |= result.get("by_question_word", {})
    script = f"SQuAD {result['version']}"
    if result.get("normalization") == "triviaqa":
        script = "TriviaQA"
    lines = [
        f"{script}, {result['total']} questions, {result['missing']} without a prediction",
        f"{'':<12}{'n':>7}{'EM':>8}{'95 %':>16}{'F1':>8}{'95 %':>16}{'P':>6}{'R':>6}",
    ]
    for name, group in groups.items():
        line = f"{name.replace('_', ' '):<12}{group['total']:>7}"
        for measure in ("exact_match", "f1"):
            interval = group.get(f"{measure}_interval")
            shown = f"[{interval[0]:.1f}, {interval[1]:.1f}]" if interval else ""
            line += f"{group[measure]:>8.2f}{shown:>16}"
        lines.append(f"{line}{group['precision']:>6.1f}{group['recall']:>6.1f}")
    return "\n".join(lines)


def _checked_ids(references: Sequence[Mapping[str, Any]]) -> list[str]:
    """The ids of the questions, of which there must be some, each once."""
    ids = [reference["id"] for reference in references]
    if not ids:
        raise ValueError("there is no question to score; check the split")
    question_id, count = Counter(ids).most_common(1)[0]
    if count > 1:
        raise ValueError(f"the id {question_id!r} comes {count} times; make the ids different")
    return ids


def _scores(
    ids: Sequence[str],
    answers: Sequence[Sequence[str]],
    predictions: Mapping[str, str],
    version: Version,
    normalization: Normalization = "squad",
) -> np.ndarray:
    """Scores from 0 to 1, a row for each question and a column for each of MEASURES."""
    rows = []
    for question_id, texts in zip(ids, answers, strict=True):
        prediction = predictions.get(question_id)
        if prediction is None and question_id not in predictions:
            rows.append([0.0] * len(MEASURES))
            continue
        if not isinstance(prediction, str):
            raise ValueError(f"the prediction for {question_id!r} is {prediction!r}, not text")
        if version == "1.1" and not texts:
            raise ValueError(
                f"question {question_id!r} has no answer, which SQuAD 1.1 does not know; "
                "give version='2.0'"
            )
        rows.append(list(score_answer(prediction, texts, version, normalization).values()))
    return np.array(rows)


def _summary(scores: np.ndarray, bootstrap_samples: int, seed: int) -> dict[str, Any]:
    """Averages of scores in percent, with the intervals of exact match and F1."""
    count = len(scores)
    # Summed like the official scripts sum; numpy's pairwise sum differs in the last digits.
    averages = [100.0 * sum(column) / count for column in scores.T.tolist()]
    result: dict[str, Any] = {"total": count, **dict(zip(MEASURES, averages, strict=True))}
    if bootstrap_samples:
        generator = np.random.default_rng(seed)
        drawn = np.array(
            [
                scores[generator.integers(count, size=count), :2].mean(axis=0)
                for _ in range(bootstrap_samples)
            ]
        )
        low, high = 100 * np.percentile(drawn, [2.5, 97.5], axis=0)
        for column, measure in enumerate(MEASURES[:2]):
            result[f"{measure}_interval"] = [float(low[column]), float(high[column])]
    return result
