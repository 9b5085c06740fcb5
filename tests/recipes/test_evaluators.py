"""Evaluate's evaluators with models of this package: the predictions and figures of the recipes."""

import dataclasses
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from tests.recipes.conftest import PAIRS, QUESTIONS, TRANSLATION, config_of
from vanilla_transformer.data.inference_corpora import LABELS
from vanilla_transformer.evaluation import load_metric
from vanilla_transformer.evaluation.question_answering import evaluate_question_answering
from vanilla_transformer.evaluation.significance import confidence_intervals
from vanilla_transformer.generation import DecodingSettings
from vanilla_transformer.recipes import load_model, write_recipe
from vanilla_transformer.recipes.evaluators import (
    EVALUATORS,
    QuestionAnsweringEvaluator,
    TextClassificationEvaluator,
    TranslationEvaluator,
)
from vanilla_transformer.recipes.prediction import read_data, recipe_kind

RECIPES: dict[str, Any] = {
    "translation": TRANSLATION,
    "question_answering": QUESTIONS,
    "inference": PAIRS,
}
PERFORMANCE = {"total_time_in_seconds", "samples_per_second", "latency_in_seconds"}


@pytest.fixture(scope="module")
def runs(
    tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """What a run of each task leaves, with an untrained model."""
    found = {}
    for task, recipe in RECIPES.items():
        found[task] = tmp_path_factory.mktemp(task)
        torch.manual_seed(2)
        recipe.model_class(config_of(recipe)).save_pretrained(found[task] / "model")
        tokenizer.save_pretrained(found[task] / "model")
        write_recipe(recipe, found[task] / "recipe.json")
    return found


def examples_of(task: Any, count: int = 12) -> Dataset:
    return read_data(task, "tiny_world", "test", limit=count)[0]


def expected(task: str, run: Path, examples: Dataset) -> dict[str, Any]:
    """The recipe's own scores."""
    recipe = RECIPES[task]
    model, tokenizer = load_model(run, "cpu", kind=recipe_kind(recipe))
    scores: dict[str, Any] = recipe.predict(model, tokenizer, examples, Accelerator()).score()
    return scores


def check(task: str, found: dict[str, Any], scores: dict[str, Any]) -> None:
    """The figures of an evaluator against the recipe's."""
    assert set(found) >= PERFORMANCE
    if task == "translation":
        assert found["score"] == pytest.approx(scores["bleu"]["score"])
        assert found["signature"] == scores["bleu"]["signature"]
    elif task == "question_answering":
        for key in ("exact_match", "f1", "total"):
            assert found[key] == pytest.approx(scores[key])
    else:
        assert found["accuracy"] == pytest.approx(scores["accuracy"])
        assert found["macro_f1"] == pytest.approx(scores["macro_f1"])
        error = scores["calibration"]["expected_error"]
        assert found["expected_calibration_error"] == pytest.approx(error)


@pytest.mark.parametrize("task", list(RECIPES))
def test_a_run_scores_as_by_its_recipe(task: Any, runs: dict[str, Path]) -> None:
    examples = examples_of(task)
    scores = expected(task, runs[task], examples)
    evaluator = EVALUATORS[task]()
    check(task, evaluator.compute(str(runs[task]), examples, device=-1), scores)
    check(task, evaluator.compute(str(runs[task] / "model"), examples), scores)
    # The name of a corpus goes to this package's reader, not to the Hub.
    named = evaluator.load_data("tiny_world", split="test")
    assert named.select(range(12)).to_list() == examples.to_list()


@pytest.mark.parametrize("task", list(RECIPES))
def test_a_model_and_its_tokenizer_and_the_bootstrap(task: Any, runs: dict[str, Path]) -> None:
    examples = examples_of(task)
    model, tokenizer = load_model(runs[task], "cpu", kind=recipe_kind(RECIPES[task]))
    evaluator = EVALUATORS[task]()
    plain = evaluator.compute(model, examples, tokenizer=tokenizer)
    options: dict[str, Any] = {"strategy": "bootstrap", "n_resamples": 50}
    found = evaluator.compute(model, examples, tokenizer=tokenizer, **options)
    for key, value in plain.items():
        if key in PERFORMANCE:
            continue
        one = found[key]
        assert (one["score"] if isinstance(one, dict) else one) == pytest.approx(value)
        if isinstance(one, dict):
            low, high = one["confidence_interval"]
            assert low <= high
    with pytest.raises(ValueError, match="come with its tokenizer"):
        evaluator.compute(model, examples)


def test_predictions_are_those_of_a_callable() -> None:
    """Transformers' old pipelines, or whatever takes and gives the same, work as they are."""
    pairs = Dataset.from_dict({"source": ["a b", "c d e f"], "target": ["A B C D", "C D E F"]})

    def shout(sources: Any, **options: Any) -> list[dict[str, str]]:
        assert options == {}
        return [{"translation_text": text.upper()} for text in sources]

    for metric in ("chrf", load_metric("chrf")):
        found = TranslationEvaluator().compute(shout, pairs, metric=metric)
        expected = load_metric("chrf").compute(
            predictions=["A B", "C D E F"], references=list(pairs["target"])
        )
        assert {key: found[key] for key in expected} == expected


def test_translation_intervals_are_sacrebleus_and_of_any_other_metric_resampled() -> None:
    predictions = [f"a b c d {word}" for word in "efghijkl"]
    references = [f"a b c d {word}" for word in "eegghhii"]
    pairs = Dataset.from_dict({"source": predictions, "target": references})

    def copy(sources: Any, **options: Any) -> list[dict[str, str]]:
        return [{"translation_text": text} for text in sources]

    evaluator = TranslationEvaluator()
    options: dict[str, Any] = {"strategy": "bootstrap", "n_resamples": 40}
    metric = load_metric("bleu", lowercase=True)
    found = evaluator.compute(copy, pairs, metric=metric, **options)
    direct = confidence_intervals(
        predictions, references, metrics={"bleu": {"lowercase": True}}, num_resamples=40
    )["bleu"]
    assert found["score"]["confidence_interval"] == tuple(direct["interval"])
    assert "case:lc" in found["signature"]
    for wrong in ({"confidence_level": 0.9}, {"random_state": 1}):
        with pytest.raises(ValueError, match="SACREBLEU_SEED"):
            evaluator.compute(copy, pairs, **options, **wrong)
    # Two in one, which sacreBLEU's functions cannot take.
    both = evaluate.combine([load_metric("bleu"), load_metric("ter")])
    both.name = "both"
    found = evaluator.compute(copy, pairs, metric=both, random_state=3, **options)
    low, high = found["ter_score"]["confidence_interval"]
    assert low < found["ter_score"]["score"] < high
    assert found["ter_score"]["standard_error"] > 0
    assert isinstance(found["bleu_signature"], str)


def test_generation_settings_of_one_call_do_not_stay(runs: dict[str, Path]) -> None:
    pairs = examples_of("translation", 3)
    run = str(runs["translation"])
    plain = TranslationEvaluator().compute(run, pairs, metric="ter")
    changed = {"num_beams": 1, "max_tokens_over_source": 1}
    short = TranslationEvaluator().compute(run, pairs, metric="ter", generation_kwargs=changed)
    recipe = dataclasses.replace(TRANSLATION, decoding=DecodingSettings(**changed))
    model, tokenizer = load_model(run, "cpu")
    scores = recipe.predict(model, tokenizer, pairs, Accelerator()).score()
    assert short["score"] == pytest.approx(scores["ter"]["score"])
    # Evaluate's own class keeps such settings for ever.
    assert evaluate.TranslationEvaluator.PIPELINE_KWARGS == {"truncation": True}
    again = TranslationEvaluator().compute(run, pairs, metric="ter")
    assert again["score"] == plain["score"]


def test_question_intervals_are_the_bootstrap_over_questions() -> None:
    questions = examples_of("question_answering", 30)
    right = {one["question"]: (one["answers"]["text"] or [""])[0] for one in questions}

    def answer(question: Any, context: Any, **options: Any) -> list[dict[str, Any]]:
        return [
            {"answer": right[one] if i % 3 else "the", "score": 1.0}
            for i, one in enumerate(question)
        ]

    found = QuestionAnsweringEvaluator().compute(
        answer, questions, strategy="bootstrap", n_resamples=2000, random_state=0
    )
    predictions = answer(questions["question"], questions["context"])
    texts = {one: p["answer"] for one, p in zip(questions["id"], predictions, strict=True)}
    direct = evaluate_question_answering(questions, texts, bootstrap_samples=2000, seed=5)
    for measure in ("exact_match", "f1"):
        assert found[measure]["score"] == pytest.approx(direct[measure])
        interval = found[measure]["confidence_interval"]
        assert interval == pytest.approx(direct[f"{measure}_interval"], abs=4)
    assert found["total"] == 30


def test_labels_go_by_name_and_probabilities_where_they_are_wanted() -> None:
    pairs = examples_of("inference", 9)

    def always(pairs: Any, **options: Any) -> list[dict[str, Any]]:
        assert all(set(pair) == {"text", "text_pair"} for pair in pairs)
        return [{"label": "neutral", "score": 1.0} for _ in pairs]

    evaluator = TextClassificationEvaluator()
    neutral = np.mean([one == LABELS.index("neutral") for one in pairs["label"]])
    found = evaluator.compute(always, pairs, strategy="bootstrap", n_resamples=100)
    assert found["accuracy"]["score"] == pytest.approx(100 * neutral)
    assert found["expected_calibration_error"] is None
    assert found["examples"] == 9
    # Numbers of one's own, and a label that nobody knows, which is wrong.
    entailed = np.mean([one == 0 for one in pairs["label"]])
    mapped = evaluator.compute(always, pairs, label_mapping={"neutral": 0})
    assert mapped["accuracy"] == pytest.approx(100 * entailed)
    assert evaluator.compute(always, pairs, label_mapping={"other": 0})["accuracy"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "exact"}, "'simple' or 'bootstrap'"),
        ({"strategy": "bootstrap", "n_resamples": 0}, "n_resamples"),
        ({"strategy": "bootstrap", "confidence_level": 1.0}, "confidence_level"),
        ({"model_or_pipeline": 3}, "directory or id of a model"),
        ({"model_or_pipeline": "runs/none"}, "runs/none"),
    ],
)
def test_bad_input_is_named(options: dict[str, Any], message: str) -> None:
    pairs = Dataset.from_dict({"source": ["a"], "target": ["a"]})

    def copy(sources: Any) -> list[dict[str, str]]:
        return [{"translation_text": text} for text in sources]

    with pytest.raises(ValueError, match=message):
        TranslationEvaluator().compute(**{"model_or_pipeline": copy, "data": pairs, **options})


def test_a_model_of_another_task_is_refused(runs: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="cannot be used for translation"):
        TranslationEvaluator().compute(str(runs["inference"]), examples_of("translation", 2))
