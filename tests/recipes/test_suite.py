"""One call over several test sets: the figures are the recipes' own."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from tests.recipes.conftest import PAIRS, QUESTIONS, TRANSLATION, config_of
from vanilla_transformer.recipes import load_model, write_recipe
from vanilla_transformer.recipes.prediction import Task, read_data, recipe_kind
from vanilla_transformer.recipes.suite import (
    STANDARD_TEST_SETS,
    TestSet,
    evaluate_suite,
    format_suite,
    models_by_task,
    parse_test_sets,
)

RECIPES: dict[Task, Any] = {
    "translation": TRANSLATION,
    "question_answering": QUESTIONS,
    "inference": PAIRS,
}
# The standard sets with something that is here in their place, as local copies would be.
HERE = tuple(
    dataclasses.replace(one, corpus="tiny_world", split="test", configuration=None)
    for one in STANDARD_TEST_SETS
)


@pytest.fixture(scope="module")
def runs(
    tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory
) -> dict[Task, Path]:
    found = {}
    for task, recipe in RECIPES.items():
        found[task] = tmp_path_factory.mktemp(task)
        torch.manual_seed(2)
        recipe.model_class(config_of(recipe)).save_pretrained(found[task] / "model")
        tokenizer.save_pretrained(found[task] / "model")
        write_recipe(recipe, found[task] / "recipe.json")
    return found


def test_all_tasks_in_one_table(runs: dict[Task, Path]) -> None:
    results = evaluate_suite(runs, HERE, limit=8, device="cpu", num_resamples=20)
    assert list(results) == [one.name for one in STANDARD_TEST_SETS]
    for test_set in HERE:
        recipe, one = RECIPES[test_set.task], results[test_set.name]
        examples, _ = read_data(test_set.task, "tiny_world", "test", limit=8)
        model, tokenizer = load_model(runs[test_set.task], "cpu", kind=recipe_kind(recipe))
        scores = recipe.predict(model, tokenizer, examples, Accelerator()).score()
        assert (one["task"], one["examples"]) == (test_set.task, 8)
        for key in set(scores) - {"seconds"}:
            assert one["scores"][key] == scores[key]
        for figure in one["figures"].values():
            low, high = figure["interval"]
            assert low <= high
    figures = {name: list(one["figures"]) for name, one in results.items()}
    assert figures == {
        "WMT14 en-de": ["BLEU", "chrF", "TER"],
        "SQuAD 1.1": ["EM", "F1"],
        "SNLI": ["accuracy", "macro-F1"],
    }
    squad = results["SQuAD 1.1"]
    assert squad["figures"]["F1"] == {
        "score": squad["scores"]["f1"],
        "interval": squad["scores"]["f1_interval"],
    }
    assert json.loads(json.dumps(results)) == results

    lines = format_suite(results).splitlines()
    assert len(lines) == 1 + 7 + 1
    assert [line.split()[-4 if "[" in line else -1] for line in lines[1:3]] == ["BLEU", "chrF"]
    assert lines[-1].startswith("WMT14 en-de: nrefs:1|")
    assert all(len(line) <= 80 for line in lines)


def test_test_sets_without_a_model_are_left_out(runs: dict[Task, Path]) -> None:
    given: dict[Task, Path] = {"inference": runs["inference"]}
    assert list(evaluate_suite(given, HERE, limit=4, device="cpu")) == ["SNLI"]


def test_bad_sets_are_named(runs: dict[Task, Path]) -> None:
    with pytest.raises(ValueError, match="one or more test sets"):
        evaluate_suite({"inference": runs["inference"]}, HERE[:1])
    with pytest.raises(ValueError, match="each of another name"):
        evaluate_suite(runs, (HERE[0], HERE[0]))


def test_translations_are_reported_as_a_domain(runs: dict[Task, Path]) -> None:
    sets = [TestSet(name, "translation", "tiny_world", name) for name in ("test", "validation")]
    sets.append(HERE[-1])
    results = evaluate_suite(
        runs,
        sets,
        limit=6,
        device="cpu",
        num_resamples=5,
        breakdown={"num_worst": 1, "training_text": ["the dog"]},
    )
    assert [name for name, one in results.items() if "domain" in one] == ["test", "validation"]
    validation = results["validation"]
    # By the recipe's own options: the same figures as those of the table.
    for metric in ("bleu", "chrf"):
        assert validation["domain"][metric]["score"] == validation["scores"][metric]["score"]
    assert sum(one["segments"] for one in validation["domain"]["by_rarest_word"].values()) == 6
    pairs, _ = read_data("translation", "tiny_world", "validation", limit=6)
    worst = validation["domain"]["worst"][0]
    assert worst["source"] == pairs["source"][worst["segment"] - 1]
    assert worst["references"] == [pairs["target"][worst["segment"] - 1]]


def test_a_set_of_other_languages_is_refused(runs: dict[Task, Path]) -> None:
    french = dataclasses.replace(HERE[0], languages=("en", "fr"))
    with pytest.raises(ValueError, match="translates en to de, and WMT14 en-de is of other"):
        evaluate_suite(runs, [french])


def test_sets_and_models_are_read_as_they_are_typed(runs: dict[Task, Path], tmp_path: Path) -> None:
    assert parse_test_sets(
        ["translation=some/folder:test", "question-answering=rajpurkar/squad_v2"]
    ) == [
        TestSet("folder test", "translation", "some/folder", "test"),
        TestSet("squad_v2", "question_answering", "rajpurkar/squad_v2"),
    ]
    both = parse_test_sets(["question-answering=tiny_world", "inference=tiny_world"])
    assert [one.name for one in both] == [
        "tiny_world (question answering)",
        "tiny_world (inference)",
    ]
    odd = tmp_path / "a:b.jsonl"
    odd.touch()
    assert parse_test_sets([f"inference={odd}"])[0].corpus == str(odd)
    for text in ("some/folder", "summaries=some/folder", "inference="):
        with pytest.raises(ValueError, match=r"must be TASK=CORPUS or TASK=CORPUS:SPLIT"):
            parse_test_sets([text])

    given = [str(path) for path in runs.values()]
    assert models_by_task(given) == {task: str(path) for task, path in runs.items()}
    text = given[0]
    assert models_by_task([f"question-answering={text}"]) == {"question_answering": text}
    with pytest.raises(ValueError, match="both for translation"):
        models_by_task([text, text])
