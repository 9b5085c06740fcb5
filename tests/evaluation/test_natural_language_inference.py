"""The figures of inference against plain recomputation, and the slices against sentences."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from vanilla_transformer.data.inference_corpora import LABELS, TWO_WAY_LABELS, load_inference
from vanilla_transformer.evaluation.natural_language_inference import (
    HypothesisOnly,
    calibration,
    evaluate_inference,
    format_report,
    slice_masks,
    wilson_interval,
)


def make(
    rows: list[tuple[str, str, int]], names: tuple[str, ...] = LABELS, **columns: list[Any]
) -> Dataset:
    """A data set of (premise, hypothesis, label) and annotation columns."""
    features: dict[str, Any] = {
        "premise": Value("string"),
        "hypothesis": Value("string"),
        "label": ClassLabel(names=list(names)),
    }
    for column in columns:
        text = Value("string")
        features[column] = List(text) if column == "phenomena" else text
    sides = dict(zip(features, (list(side) for side in zip(*rows, strict=True)), strict=False))
    return Dataset.from_dict({**sides, **columns}, features=Features(features))


def labelled(labels: list[int], names: tuple[str, ...] = LABELS) -> Dataset:
    return make(
        [("A dog runs.", f"It runs {row}.", label) for row, label in enumerate(labels)], names
    )


def one_hot(labels: list[int], num_labels: int = 3) -> np.ndarray:
    return np.eye(num_labels)[labels]


def plain_macro_f1(gold: list[int], predicted: list[int]) -> float:
    """Mean F1 in percent over the labels that occur, label by label and example by example."""
    scores = []
    for label in sorted({*gold, *predicted} - {-1}):
        right = sum(g == p == label for g, p in zip(gold, predicted, strict=True))
        precision = right / predicted.count(label) if label in predicted else 0.0
        recall = right / gold.count(label) if label in gold else 0.0
        both = precision + recall
        scores.append(2 * precision * recall / both if both else 0.0)
    return 100 * sum(scores) / len(scores)


# Figures


@pytest.mark.parametrize("seed", range(5))
def test_figures_equal_plain_recomputation(seed):
    generator = np.random.default_rng(seed)
    gold = generator.integers(0, 3, size=60).tolist()
    predicted = generator.integers(-1, 3, size=60).tolist()
    result = evaluate_inference(labelled(gold), predicted, num_resamples=10)
    together = list(zip(gold, predicted, strict=True))
    assert result["accuracy"] == pytest.approx(100 * sum(g == p for g, p in together) / 60)
    assert result["macro_f1"] == pytest.approx(plain_macro_f1(gold, predicted))
    # The last column is for answers that are no label.
    assert result["confusion"] == [
        [together.count((g, p)) for p in (0, 1, 2, -1)] for g in range(3)
    ]
    assert result["unanswered"] == predicted.count(-1)
    for label, name in enumerate(LABELS):
        row = result["per_label"][name]
        right = together.count((label, label))
        assert row["precision"] == pytest.approx(100 * right / predicted.count(label))
        assert row["recall"] == pytest.approx(100 * right / gold.count(label))
        assert row["examples"] == gold.count(label)


def test_probabilities_are_read_column_by_column():
    gold = [0, 1, 2, 2]
    result = evaluate_inference(labelled(gold), one_hot([0, 1, 2, 0]))
    assert result["accuracy"] == 75
    assert result["confusion"] == [[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0]]
    assert result["labels"] == list(LABELS)


def test_label_that_does_not_occur_does_not_lower_the_macro_f1():
    # Wholly right on a slice of one label is 100, not a third of it.
    assert evaluate_inference(labelled([2, 2]), [2, 2])["macro_f1"] == 100


def test_majority_is_of_the_examples_that_are_scored():
    dataset = make([("a", "b", label) for label in (1, 1, 0, 2, 2)], genre=["x"] * 3 + ["y"] * 2)
    result = evaluate_inference(dataset, [0] * 5)
    assert (result["majority_label"], result["majority_accuracy"]) == ("neutral", 40)
    assert result["majority_macro_f1"] == pytest.approx(plain_macro_f1([1, 1, 0, 2, 2], [1] * 5))
    assert result["slices"]["genre"]["x"]["majority_accuracy"] == pytest.approx(200 / 3)
    assert result["slices"]["genre"]["y"]["majority_accuracy"] == 100


def test_three_labels_are_mapped_onto_two_as_hans_does():
    dataset = labelled([0, 1, 1, 0], TWO_WAY_LABELS)
    scores = np.array([[0.4, 0.3, 0.3], [0.3, 0.4, 0.3], [0.1, 0.1, 0.8], [0.2, 0.2, 0.6]])
    result = evaluate_inference(dataset, scores, num_bins=10)
    # The first is entailment, the likeliest of the three, though the other two outweigh it.
    assert result["confusion"] == [[1, 1, 0], [0, 2, 0]]
    # The second is 0.7 sure of not_entailment, the third 0.9, the fourth 0.8.
    sure = [one["certainty"] for one in result["calibration"]["bins"] if one["examples"]]
    assert sure == pytest.approx([40, 70, 80, 90])


def test_two_label_model_cannot_be_scored_on_three_labels():
    with pytest.raises(ValueError, match="entailment, not_entailment cannot be told apart as"):
        evaluate_inference(labelled([0, 1]), one_hot([0, 1], 2))


@pytest.mark.parametrize(
    ("predictions", "complaint"),
    [
        ([0], "1 predictions for 2 examples"),
        ([0, 3], "whole numbers from -1 to 2"),
        ([0.2, 0.8], "whole numbers"),
        (np.array([[1.0, 0, 0], [np.nan, 0, 0]]), "row 1: .* are no probabilities"),
        (np.array([[5.0, 1, 0], [1, 0, 0]]), "row 0: .* label_probabilities"),
        (np.array([[1.0, 0, 0], [-0.5, 1, 0.5]]), "row 1"),
        (np.ones((2, 4)) / 4, r"\[N, 3\] or \[N, 2\]"),
    ],
)
def test_predictions_that_are_none_are_refused(predictions, complaint):
    with pytest.raises(ValueError, match=complaint):
        evaluate_inference(labelled([0, 1]), predictions)


def test_sets_that_cannot_be_scored_are_refused():
    with pytest.raises(ValueError, match="row 1 has no gold label"):
        evaluate_inference(labelled([0, -1]), [0, 0])
    with pytest.raises(ValueError, match="no example"):
        evaluate_inference(labelled([0]).select([]), [])
    with pytest.raises(ValueError, match=r"confidence \(95\)"):
        evaluate_inference(labelled([0]), [0], confidence=95)


# Intervals and calibration


@pytest.mark.parametrize(
    ("right", "examples", "expected"),
    # Wilson's interval in closed form for z = 1.959964: 8 of 10 is the textbook's example.
    [(8, 10, (49.02, 94.33)), (0, 10, (0.0, 27.75)), (10, 10, (72.25, 100.0))],
)
def test_wilson_interval(right, examples, expected):
    assert wilson_interval(right, examples) == pytest.approx(expected, abs=0.005)


def test_bootstrap_interval_is_that_of_resampled_examples():
    generator = np.random.default_rng(1)
    gold = generator.integers(0, 3, size=200)
    predicted = np.where(generator.random(200) < 0.6, gold, generator.integers(0, 3, size=200))
    result = evaluate_inference(labelled(gold.tolist()), predicted, num_resamples=4000)
    draws = []
    for _ in range(2000):
        rows = generator.integers(0, 200, size=200)
        draws.append(plain_macro_f1(gold[rows].tolist(), predicted[rows].tolist()))
    assert result["macro_f1_interval"] == pytest.approx(np.percentile(draws, [2.5, 97.5]), abs=1.0)


def test_same_seed_same_figures():
    dataset, predicted = labelled([0, 1, 2, 1, 0, 2] * 5), [0, 1, 1, 1, 0, 0] * 5
    first, again, other = (
        evaluate_inference(dataset, predicted, seed=seed)["macro_f1_interval"] for seed in (3, 3, 4)
    )
    assert first == again != other


def test_wider_confidence_gives_wider_intervals():
    dataset, predicted = labelled([0, 1, 2] * 10), [0, 1, 1] * 10
    narrow, wide = (
        evaluate_inference(dataset, predicted, confidence=confidence) for confidence in (0.5, 0.99)
    )
    for figure in ("accuracy_interval", "macro_f1_interval"):
        assert wide[figure][0] < narrow[figure][0] < narrow[figure][1] < wide[figure][1]


def test_calibration_of_a_hand_made_case():
    certainty = np.array([0.9, 0.9, 0.6, 0.5, 1.0])
    right = np.array([True, False, True, True, True])
    result = calibration(certainty, right, num_bins=2)
    # 0.5 belongs to the lower bin: 1 of 1 right there; above, certainty 0.85 and 3 of 4 right.
    assert [one["examples"] for one in result["bins"]] == [1, 4]
    assert [one["certainty"] for one in result["bins"]] == pytest.approx([50, 85])
    assert [one["accuracy"] for one in result["bins"]] == pytest.approx([100, 75])
    assert result["expected_error"] == pytest.approx((1 * 50 + 4 * 10) / 5)


def test_sure_and_right_is_calibrated():
    result = evaluate_inference(labelled([0, 1, 2]), one_hot([0, 1, 2]))
    assert result["calibration"]["expected_error"] == 0
    assert result["calibration"]["bins"][-1]["examples"] == 3
    assert evaluate_inference(labelled([0, 1, 2]), [0, 1, 2])["calibration"] is None


# Hypothesis-only baseline


def test_hypothesis_only_finds_what_the_hypothesis_gives_away():
    words = ("animal", "friend", "nobody")
    train = make(
        [("x", f"a {words[label]} waits {row}", label) for row in range(9) for label in range(3)]
    )
    baseline = HypothesisOnly(train)
    assert baseline.predict([f"the {word} left" for word in words]).tolist() == [0, 1, 2]
    test = make([("x", f"one {words[label]}", label) for label in (0, 1, 2, 2)])
    result = evaluate_inference(test, [0] * 4, hypothesis_only=baseline)
    assert (result["accuracy"], result["hypothesis_only_accuracy"]) == (25, 100)
    assert result["hypothesis_only_macro_f1"] == 100
    assert "hypothesis_only_accuracy" not in evaluate_inference(test, [0] * 4)
    # On a set with two labels, neutral and contradiction are one.
    two = make([("x", f"one {words[label]}", min(label, 1)) for label in (0, 1, 2)], TWO_WAY_LABELS)
    assert (
        evaluate_inference(two, [0, 0, 0], hypothesis_only=baseline)["hypothesis_only_accuracy"]
        == 100
    )


def test_hypothesis_only_equals_naive_bayes_by_hand():
    train = make([("x", "a b", 0), ("x", "a c", 1), ("x", "c", 1), ("x", "z", -1)])
    # Features of label 0: a, b, "a b"; of label 1: a, c (twice), "a c". Five different ones in
    # all, for each one more count. Of label 2 there are none.
    for hypothesis, expected in (("b", 0), ("a", 1), ("a b", 0), ("new", 1)):
        scores = []
        for counts, total, prior in (
            ({"a": 1, "b": 1, "a b": 1}, 3, 1 / 3),
            ({"a": 1, "c": 2, "a c": 1}, 4, 2 / 3),
        ):
            words = hypothesis.split()
            features = {*words, *(" ".join(pair) for pair in itertools.pairwise(words))}
            known = features & {"a", "b", "c", "a b", "a c"}
            scores.append(
                prior * np.prod([(counts.get(one, 0) + 1) / (total + 5) for one in known])
            )
        assert int(np.argmax(scores)) == expected
        assert HypothesisOnly(train).predict([hypothesis]).tolist() == [expected]


def test_one_count_is_added_to_each_word():
    # 6 * 1 * 1 against 1 * 2 * 2 of equal totals: with less added, the two words unseen under
    # entailment would weigh more than the one seen five times.
    train = make(
        [("x", word, label) for label, words in enumerate(("aaaaa", "deqqq")) for word in words]
    )
    assert HypothesisOnly(train).predict(["a d e"]).tolist() == [0]


def test_hypothesis_alone_says_nothing_in_the_tiny_world():
    train, _ = load_inference("tiny_world", "train", limit=2400)
    test, _ = load_inference("tiny_world", "validation", limit=600)
    result = evaluate_inference(test, [0] * 600, hypothesis_only=HypothesisOnly(train))
    assert 25 < result["hypothesis_only_accuracy"] < 42
    assert set(result["slices"]["phenomena"]) == {"negation", "quantifier", "coreference", "plain"}


def test_baseline_without_labels_is_refused():
    with pytest.raises(ValueError, match="needs training rows with labels"):
        HypothesisOnly(labelled([-1, -1]))


# Slices

RULES = [
    # premise, hypothesis, what the rules see
    (
        "A dog isn’t asleep.",
        "A dog sleeps.",
        {("negation", "in the premise only"), ("lexical overlap", "half or more")},
    ),
    ("A dog sleeps.", "The dog doesnt sleep.", {("negation", "in the hypothesis only")}),
    ("Nobody came.", "They never came.", {("negation", "in both"), ("coreference", "a pronoun")}),
    ("A knot.", "A note.", {("negation", "in neither"), ("coreference", "no pronoun")}),
    (
        "Each man sings.",
        "Something happens.",
        {
            ("quantifier", "every, all"),
            ("quantifier", "some, any"),
        },
    ),
    (
        "A man sings.",
        "Not every man sings.",
        {
            ("quantifier", "not all, not every"),
            ("quantifier", "every, all"),
        },
    ),
    ("They don't all sing.", "A man.", {("quantifier", "not all, not every")}),
    ("I want all of it.", "A man.", {("quantifier", "every, all"), ("coreference", "no pronoun")}),
    ("Most men sing.", "A man.", {("quantifier", "many, most, few")}),
    (
        "A man sings.",
        "No man sings.",
        {
            ("quantifier", "no, none"),
            ("negation", "in the hypothesis only"),
        },
    ),
    (
        "A man sings.",
        "A MAN sings!",
        {
            ("quantifier", "none of these"),
            ("lexical overlap", "all words"),
        },
    ),
    ("A tall man sings in the old house.", "A man sings.", {("lexical overlap", "all words")}),
    ("A man.", "Somewhere birds fly.", {("lexical overlap", "fewer than half")}),
    ("A dog saw its owner.", "A dog.", {("coreference", "a pronoun")}),
]


@pytest.mark.parametrize(
    ("premise", "hypothesis", "expected"), RULES, ids=[row[1] for row in RULES]
)
def test_rules_see_what_makes_a_pair_hard(premise, hypothesis, expected):
    groups = slice_masks(make([(premise, hypothesis, 1)]))
    seen = {(group, name) for group, slices in groups.items() for name, m in slices.items() if m[0]}
    assert expected <= seen
    # Some slices of a group shut each other out.
    for group in ("negation", "coreference"):
        assert sum(one == group for one, _ in seen) == 1
    assert (("quantifier", "not all, not every") in seen) == (
        ("quantifier", "not all, not every") in expected
    )
    assert (("quantifier", "none of these") in seen) == (
        not any(group == "quantifier" and name != "none of these" for group, name in seen)
    )


def test_misleading_overlap_is_told_by_the_gold_label():
    rows = [("The dog saw the cat.", "The cat saw the dog.", label) for label in (0, 1, 2)]
    rows += [("A man swims.", "Somebody is wet.", label) for label in (0, 1, 2)]
    masks = slice_masks(make(rows))["lexical overlap"]
    assert masks["all words, not entailed"].tolist() == [False, True, True, False, False, False]
    assert masks["fewer than half, entailed"].tolist() == [False] * 3 + [True, False, False]


def test_annotation_makes_slices():
    dataset = make(
        [("a", "b", 0), ("a", "b", 1), ("a", "b", 1)],
        TWO_WAY_LABELS,
        heuristic=["overlap", "overlap", None],
        phenomena=[["x", "y"], [], ["y"]],
    )
    result = evaluate_inference(dataset, [0, 0, 1])
    slices = result["slices"]
    assert {name: one["examples"] for name, one in slices["phenomena"].items()} == {"x": 1, "y": 2}
    assert slices["heuristic"]["overlap"]["accuracy"] == 50
    assert {name: one["accuracy"] for name, one in slices["heuristic and gold label"].items()} == {
        "overlap, entailment": 100,
        "overlap, not_entailment": 0,
    }


def test_english_rules_are_kept_off_other_languages():
    rows = [("No man sings.", "A man sings.", 2)] * 2
    masks = slice_masks(make(rows, language=["en", "de"]))
    assert masks["negation"]["in the premise only"].tolist() == [True, False]
    assert set(slice_masks(make(rows, language=["de", "de"]))) == {"language"}


# Text


def test_report_is_json_and_fits_80_columns():
    dataset = make(
        [("Nobody sings.", "A man sings.", label) for label in (0, 1, 1, 1)] * 3000,
        TWO_WAY_LABELS,
        heuristic=["constituent_with_a_very_long_name"] * 12_000,
    )
    baseline = HypothesisOnly(dataset)
    scores = np.random.default_rng(0).dirichlet([1, 1, 1], 12_000)
    result = evaluate_inference(dataset, scores, hypothesis_only=baseline)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    report = format_report(result, "HANS")
    assert max(map(len, report.splitlines())) <= 80
    assert report.startswith("HANS\n====\n")
    for wanted in ("not_entailment", "expected error", "in the premise only", "75.0"):
        assert wanted in report


def test_report_of_generated_labels_counts_answers_that_are_none():
    report = format_report(evaluate_inference(labelled([0, 1, 2]), [0, 1, -1]))
    assert "1 answers are no label" in report
    assert "no label" in report
    assert "calibration" not in report
    assert max(map(len, report.splitlines())) <= 80


# The real sets


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "split", "majority", "groups"),
    [
        ("nli_small", "test_sick", 56.7, set()),
        ("snli", "test", 34.3, set()),
        ("taxinli", "validation", 36.5, {"phenomena"}),
        ("hans", "validation", 50.0, {"heuristic", "subcase", "heuristic and gold label"}),
        ("breaking_nli", "test", 87.4, {"category"}),
    ],
)
def test_real_sets_are_sliced(shared_data, folder, split, majority, groups):
    dataset, _ = load_inference(shared_data / folder, split)
    result = evaluate_inference(dataset, dataset["label"], num_resamples=10)
    assert result["accuracy"] == result["macro_f1"] == 100
    assert result["majority_accuracy"] == pytest.approx(majority, abs=0.05)
    rules = {"negation", "quantifier", "coreference", "lexical overlap"}
    assert set(result["slices"]) - groups <= rules
    assert groups <= set(result["slices"])


@pytest.mark.slow
def test_rules_find_most_of_what_taxinli_annotates(shared_data):
    masks = slice_masks(load_inference(shared_data / "taxinli", "validation")[0])
    for phenomenon, found, recall in (
        ("negation_logic", ~masks["negation"]["in neither"], 0.93),
        ("quantifier_logic", ~masks["quantifier"]["none of these"], 0.67),
        ("coreference_reasoning", masks["coreference"]["a pronoun"], 0.46),
    ):
        annotated = masks["phenomena"][phenomenon]
        assert (annotated & found).sum() / annotated.sum() > recall
        # The rule says something: it finds more among the annotated than among the others.
        assert found[annotated].mean() > 1.25 * found[~annotated].mean()
