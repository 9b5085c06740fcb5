"""Exact match and F1 are the official scripts' figures, on hard cases by hand and on real files."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import pyarrow.parquet as pq
import pytest

import vanilla_transformer.evaluation
from vanilla_transformer.evaluation.question_answering import (
    apply_no_answer_threshold,
    evaluate_question_answering,
    fit_no_answer_threshold,
    format_report,
    normalize_answer,
    question_word,
    score_answer,
)

SQUAD = Path(vanilla_transformer.evaluation.__file__).with_name("squad.py")


def reference(question_id: str, answers: list[str], question: str = "What?") -> dict[str, Any]:
    return {
        "id": question_id,
        "question": question,
        "answers": {"text": answers, "answer_start": [0] * len(answers)},
    }


# What counts as the same answer


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Cat's\tpyjamas!", "cats pyjamas"),
        ("the", ""),
        ("A", ""),
        ("a.b", "ab"),
        # Punctuation goes first, so these are no articles any more ...
        ("an-other", "another"),
        ("l'an 2000", "lan 2000"),
        ("U.S.A.", "usa"),
        # ... and these become some.
        ("T.H.E. end", "end"),
        ("'a' 'an' 'the'", ""),
        # Beyond ASCII nothing is punctuation, but it bounds words.
        ("war—the end", "war— end"),
        ("“the” end", "“ ” end"),
        ("théâtre", "théâtre"),
        ("a_b the_c", "ab thec"),
        # Any white space of Unicode separates; a zero-width space does not.
        ("5\u00a0000\u2003km\u200b", "5 000 km\u200b"),
        ("ÄÖÜ İ ẞ", "äöü i̇ ß"),
        ("$1,000.50 (100%)", "100050 100"),
        ("then Anna", "then anna"),
        ("", ""),
    ],
)
def test_normalisation(text: str, expected: str) -> None:
    assert normalize_answer(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # A blank for each mark, so these are words of their own ...
        ("an-other", "other"),
        ("U.S.A.", "u s"),
        ("T.H.E. end", "t h e end"),
        ("$1,000.50 (100%)", "1 000 50 100"),
        ("The_Beatles", "beatles"),
        ("Ocean's Eleven", "ocean s eleven"),
        # ... and so with these four, three of them beyond ASCII, and no others.
        ("Ocean’s ‘Eleven’", "ocean s eleven"),
        ("rock´n`roll", "rock n roll"),
        ("“the” war—end", "“ ” war—end"),
        ("  The  Cat's\tpyjamas!", "cat s pyjamas"),
        ("a the", ""),
    ],
)
def test_normalisation_of_triviaqa(text: str, expected: str) -> None:
    assert normalize_answer(text, "triviaqa") == expected
    # Its aliases come normalised already.
    assert normalize_answer(expected, "triviaqa") == expected


@pytest.mark.parametrize(
    ("prediction", "answers", "version", "expected"),
    [
        # exact match, F1, precision, recall
        ("The Cat", ["a cat"], "1.1", (1, 1, 1, 1)),
        ("big black cat", ["black cat"], "1.1", (0, 4 / 5, 2 / 3, 1)),
        ("cat", ["black cat sleeps"], "1.1", (0, 1 / 2, 1, 1 / 3)),
        # A word counts as often as it occurs on both sides.
        ("ha ha ha", ["ha ha"], "1.1", (0, 4 / 5, 2 / 3, 1)),
        ("dog", ["cat"], "1.1", (0, 0, 0, 0)),
        ("", ["cat"], "1.1", (0, 0, 0, 0)),
        # The best answer counts, for each measure but by F1 for precision and recall.
        ("big cat", ["dog", "cat", "big cat sat"], "1.1", (0, 4 / 5, 1, 2 / 3)),
        ("big cat", ["a b c big cat", "big cat"], "1.1", (1, 1, 1, 1)),
        # Nothing but an article: the scripts differ on what shares no word.
        ("", ["the"], "1.1", (1, 0, 0, 0)),
        ("the", ["a"], "2.0", (1, 1, 1, 1)),
        ("cat", ["the"], "2.0", (0, 0, 0, 0)),
        ("cat", ["the", "cat"], "2.0", (1, 1, 1, 1)),
        ("", ["the", "cat"], "2.0", (0, 0, 0, 0)),
        # No answer.
        ("", [], "2.0", (1, 1, 1, 1)),
        ("The.", [], "2.0", (1, 1, 1, 1)),
        ("cat", [], "2.0", (0, 0, 0, 0)),
        ("", ["cat"], "2.0", (0, 0, 0, 0)),
    ],
)
def test_scores_of_one_answer(
    prediction: str, answers: list[str], version: Any, expected: tuple[float, ...]
) -> None:
    scores = score_answer(prediction, answers, version)
    assert list(scores) == ["exact_match", "f1", "precision", "recall"]
    assert tuple(scores.values()) == pytest.approx(expected)


def test_scores_of_one_answer_by_triviaqa() -> None:
    # "ocean s 11" against "ocean s eleven", of which SQuAD makes "oceans 11" and "oceans eleven".
    answers = ["Ocean’s_Eleven", "film"]
    scores = score_answer("The Ocean's 11", answers, normalization="triviaqa")
    assert tuple(scores.values()) == pytest.approx((0, 2 / 3, 2 / 3, 2 / 3))
    assert score_answer("ocean's eleven", answers, normalization="triviaqa")["exact_match"] == 1
    assert score_answer("ocean's eleven", answers)["f1"] == 0


# Whole sets


REFERENCES = [
    reference("1", ["black cat"], "Who sat?"),
    reference("2", ["1990", "in 1990"], "In what year was it?"),
    reference("3", ["two"], "About how many were there?"),
    reference("4", [], "Who flew?"),
]
PREDICTIONS = {"1": "cat", "2": "in 1990", "3": "three", "4": "", "other": "x"}


def test_groups_and_averages() -> None:
    result = evaluate_question_answering(REFERENCES, PREDICTIONS, bootstrap_samples=0)
    assert result == {
        "version": "2.0",
        "normalization": "squad",
        "total": 4,
        "missing": 0,
        "extra": 1,
        "exact_match": 50.0,
        "f1": pytest.approx(100 * (2 / 3 + 1 + 0 + 1) / 4),
        "precision": 75.0,
        "recall": 62.5,
        "has_answer": {
            "total": 3,
            "exact_match": pytest.approx(100 / 3),
            "f1": pytest.approx(100 * (2 / 3 + 1) / 3),
            "precision": pytest.approx(200 / 3),
            "recall": 50.0,
        },
        "no_answer": {"total": 1}
        | dict.fromkeys(("exact_match", "f1", "precision", "recall"), 100),
        "by_question_word": {
            "who": {
                "total": 2,
                "exact_match": 50.0,
                "f1": pytest.approx(100 * (2 / 3 + 1) / 2),
                "precision": 100.0,
                "recall": 75.0,
            },
            "what": {"total": 1}
            | dict.fromkeys(("exact_match", "f1", "precision", "recall"), 100.0),
            "how many": {"total": 1}
            | dict.fromkeys(("exact_match", "f1", "precision", "recall"), 0.0),
        },
    }
    json.dumps(result)


def test_version_1_1_counts_a_missing_prediction_as_wrong_and_2_0_asks_for_it() -> None:
    few = {"1": "black cat", "2": "1990"}
    result = evaluate_question_answering(REFERENCES[:3], few, bootstrap_samples=0)
    assert (result["version"], result["missing"]) == ("1.1", 1)
    assert result["exact_match"] == pytest.approx(200 / 3)
    assert "has_answer" not in result
    with pytest.raises(ValueError, match="2 questions have no prediction, '3' first"):
        evaluate_question_answering(REFERENCES, few)


def test_a_set_is_scored_as_triviaqa_does() -> None:
    references = [
        reference("q1--one.txt", ["Spider-Man", "Spiderman"]),
        reference("q2--two.txt", ["St. Paul’s", "Saint Paul's Cathedral"]),
        reference("q3--three.txt", ["nineteen"]),
    ]
    predictions = {"q1--one.txt": "spider man", "q2--two.txt": "the Cathedral of St Paul"}
    options: dict[str, Any] = {"bootstrap_samples": 0}
    result = evaluate_question_answering(
        references, predictions, normalization="triviaqa", **options
    )
    # The second: "st", "paul" of "cathedral of st paul" and "st paul s"; a third has no prediction.
    second = 2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3)
    assert result["f1"] == pytest.approx(100 * (1 + second) / 3)
    assert result["exact_match"] == pytest.approx(100 / 3)
    assert (result["version"], result["normalization"], result["missing"]) == ("1.1", "triviaqa", 1)
    assert format_report(result).startswith("TriviaQA, 3 questions, 1 without")
    by_squad = evaluate_question_answering(references, predictions, **options)
    assert by_squad["exact_match"] == 0
    assert format_report(by_squad).startswith("SQuAD 1.1, 3 questions")


def test_references_without_questions_have_no_split_by_question_word() -> None:
    bare = [{"id": one["id"], "answers": one["answers"]} for one in REFERENCES]
    assert "by_question_word" not in evaluate_question_answering(bare, PREDICTIONS)


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Who is it?", "who"),
        ("To whom?", "who"),
        ("In whose house was what found?", "who"),
        ("How much?", "how many"),
        ("how  many", "how"),
        ("However, show me the whole?", "other"),
        ("What's that?", "what"),
        ("WHERE?", "where"),
        ("Name the city.", "other"),
    ],
)
def test_question_words(question: str, expected: str) -> None:
    assert question_word(question) == expected


def test_intervals_are_seeded_and_as_wide_as_theory_says() -> None:
    count, right = 400, 120
    references = [reference(str(i), ["cat"]) for i in range(count)]
    predictions = {str(i): "cat" if i < right else "dog" for i in range(count)}
    first = evaluate_question_answering(references, predictions, seed=3)
    assert first == evaluate_question_answering(references, predictions, seed=3)
    assert first != evaluate_question_answering(references, predictions, seed=4)
    low, high = first["exact_match_interval"]
    share = right / count
    half = 100 * 1.96 * np.sqrt(share * (1 - share) / count)
    assert (low, high) == pytest.approx((30 - half, 30 + half), abs=0.8)
    assert first["f1_interval"] == [low, high]
    assert "exact_match_interval" in first["by_question_word"]["what"]


@pytest.mark.parametrize(
    ("references", "predictions", "options", "message"),
    [
        ([], {}, {}, "no question to score"),
        ([REFERENCES[0]] * 2, {"1": "x"}, {}, "the id '1' comes 2 times"),
        (REFERENCES[:1], {"1": None}, {}, "prediction for '1' is None, not text"),
        (REFERENCES[3:], {"4": ""}, {"version": "1.1"}, "'4' has no answer"),
        (REFERENCES, PREDICTIONS, {"version": "2"}, r"version \('2'\) must be"),
        (REFERENCES, PREDICTIONS, {"normalization": "nq"}, r"normalization \('nq'\) must be"),
    ],
)
def test_refusals(references: Any, predictions: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_question_answering(references, predictions, **options)
    with pytest.raises(ValueError, match=r"version='2\.0'"):
        score_answer("x", [])


def test_report_fits_80_columns() -> None:
    many = [reference(str(i), ["cat"], "How many?") for i in range(20_000)]
    result = evaluate_question_answering(
        many, dict.fromkeys(map(str, range(20_000)), "cat"), bootstrap_samples=2
    )
    text = format_report(result)
    assert "how many      20000  100.00  [100.0, 100.0]" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "no answer" in format_report(evaluate_question_answering(REFERENCES, PREDICTIONS))


# The no-answer threshold


@pytest.mark.parametrize("measure", ["exact_match", "f1"])
@pytest.mark.parametrize("seed", range(5))
def test_threshold_is_the_best_of_all(seed: int, measure: Any) -> None:
    generator = np.random.default_rng(seed)
    references = [reference(str(i), ["black cat"] if i % 2 else []) for i in range(40)]
    texts = ["black cat", "cat", "dog", ""]
    predictions = {str(i): texts[generator.integers(4)] for i in range(40)}
    # Many ties, and scores of the wrong sign among them.
    scores = {str(i): float(generator.integers(-6, 7)) - 3 * (i % 2) for i in range(40)}
    fitted = fit_no_answer_threshold(references, predictions, scores, measure=measure)
    tried = {
        threshold: evaluate_question_answering(
            references,
            apply_no_answer_threshold(predictions, scores, threshold),
            bootstrap_samples=0,
        )
        for threshold in [min(scores.values()) - 1, *sorted(set(scores.values()))]
    }
    best = max(result[measure] for result in tried.values())
    assert fitted.threshold == next(t for t in tried if tried[t][measure] == pytest.approx(best))
    assert fitted.f1 == pytest.approx(tried[fitted.threshold]["f1"])
    assert fitted.exact_match == pytest.approx(tried[fitted.threshold]["exact_match"])


def test_threshold_can_leave_all_or_none_unanswered() -> None:
    scores = {"1": 0.5, "2": 0.7}
    none = [reference("1", []), reference("2", [])]
    fitted = fit_no_answer_threshold(none, {"1": "x", "2": "y"}, scores)
    assert (fitted.f1, fitted.threshold) == (100.0, -0.5)
    assert apply_no_answer_threshold({"1": "x"}, scores, fitted.threshold) == {"1": ""}
    both = [reference("1", ["x"]), reference("2", ["y"])]
    fitted = fit_no_answer_threshold(both, {"1": "x", "2": "y"}, scores)
    assert (fitted.f1, fitted.threshold) == (100.0, 0.7)
    assert apply_no_answer_threshold({"2": "y"}, scores, fitted.threshold) == {"2": "y"}


def test_threshold_needs_a_score_for_each_question() -> None:
    with pytest.raises(ValueError, match="1 questions have no no-answer score, '4' first"):
        fit_no_answer_threshold(REFERENCES, PREDICTIONS, {"1": 0.0, "2": 0.0, "3": 0.0})
    with pytest.raises(ValueError, match="3 questions have no prediction"):
        fit_no_answer_threshold(REFERENCES, {"1": ""}, {})
    with pytest.raises(ValueError, match="no no-answer score: '1'"):
        apply_no_answer_threshold({"1": "x"}, {}, 0.0)


# Evaluate

OFFLINE = """
import json, socket, sys

def refuse(*args, **kwargs):
    raise AssertionError(f"the network was asked for: {args}")

socket.socket.connect = socket.getaddrinfo = refuse
sys.modules["vanilla_transformer"] = None
import evaluate

path, predictions, references = sys.argv[1], *map(json.loads, sys.argv[2:])
metric = evaluate.load(path)
metric.add(prediction=predictions[0], reference=references[0])
metric.add_batch(predictions=predictions[1:], references=references[1:])
print(json.dumps(metric.compute()))
"""


def as_evaluate_takes_them() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    predictions = [
        {"id": one["id"], "prediction_text": PREDICTIONS[one["id"]]} for one in REFERENCES
    ]
    return predictions, REFERENCES


def test_metric_loads_and_scores_without_network_or_package(tmp_path: Path) -> None:
    finished = subprocess.run(
        [sys.executable, "-c", OFFLINE, str(SQUAD), *map(json.dumps, as_evaluate_takes_them())],
        check=True,
        capture_output=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        cwd=tmp_path,
        timeout=120,
    )
    expected = evaluate_question_answering(REFERENCES, PREDICTIONS, bootstrap_samples=0)
    names = ("exact_match", "f1", "precision", "recall", "total")
    assert json.loads(finished.stdout) == {name: expected[name] for name in names}


def test_metric_takes_the_version_and_refuses_what_does_not_belong_together() -> None:
    metric = evaluate.load(str(SQUAD), keep_in_memory=True)
    predictions, references = as_evaluate_takes_them()
    only = {"predictions": predictions[:1], "references": references[:1]}
    # Nothing shares a word with nothing in 1.1 only.
    article = {
        "predictions": [{"id": "1", "prediction_text": "a"}],
        "references": [{"id": "1", "answers": {"text": ["the"], "answer_start": [0]}}],
    }
    assert metric.compute(**article)["f1"] == 0.0
    assert metric.compute(**article, version="2.0")["f1"] == 100.0
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"predictions": predictions, "references": references[:1]}, "4 predictions and 1"),
        ({"predictions": predictions[:2], "references": references[1::-1]}, "for question '1'"),
        ({"predictions": ["x"], "references": references[:1]}, "prediction 0 must have 'id'"),
        ({"predictions": "x", "references": references[:1]}, "predictions must be a list"),
        ({"predictions": predictions[:1], "references": [{"id": "1"}]}, "reference 0 must have"),
        ({**only, "version": "3"}, "must be '1.1' or '2.0'"),
        ({}, "at least one question"),
    ]
    for arguments, message in wrong:
        with pytest.raises(ValueError, match=message):
            metric.compute(**arguments)
    # It is none the worse for it.
    assert metric.compute(**only)["recall"] == 50.0


# Real files


@pytest.mark.slow
@pytest.mark.parametrize(
    ("system", "expected", "missing"),
    [("v1.1-LR", (40.14, 50.98), 13), ("v1.1-MatchLSTM-ens", (67.63, 76.76), 0)],
)
def test_published_predictions_score_as_published(
    shared_data: Path, system: str, expected: tuple[float, float], missing: int
) -> None:
    references = pq.read_table(shared_data / "squad" / "validation.parquet").to_pylist()
    with gzip.open(shared_data / "squad" / "predictions" / f"{system}.json.gz") as file:
        predictions = json.load(file)
    result = evaluate_question_answering(references, predictions, bootstrap_samples=0)
    assert (round(result["exact_match"], 2), round(result["f1"], 2)) == expected
    assert (result["version"], result["missing"]) == ("1.1", missing)
    words = result["by_question_word"]
    assert sum(group["total"] for group in words.values()) == result["total"] == 10_570
