"""How a model is used: by its run's recipe, or by the library's defaults."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import ClassLabel, Dataset
from transformers import PreTrainedTokenizerBase

from tests.recipes.conftest import BLOCKS, ONE_OF_EACH, PAIRS, QUESTIONS, TRANSLATION, config_of
from vanilla_transformer.data.inference_corpora import LABELS, TWO_WAY_LABELS
from vanilla_transformer.recipes import Recipe, changed, load_model, write_recipe
from vanilla_transformer.recipes.prediction import (
    Task,
    as_pair,
    as_question,
    default_recipe,
    read_data,
    recipe_kind,
    recipe_of,
)

WRITTEN_ANSWERS = dataclasses.replace(QUESTIONS, route="written", max_length=256)
WRITTEN_LABELS = dataclasses.replace(PAIRS, route="written")
PREDICTING = (TRANSLATION, QUESTIONS, PAIRS, WRITTEN_ANSWERS, WRITTEN_LABELS)


def save_run(folder: Path, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Path:
    """What a run leaves: its recipe, and an untrained model where the final one would be."""
    torch.manual_seed(1)
    recipe.model_class(config_of(recipe)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    write_recipe(recipe, folder / "recipe.json")
    return folder


# Which recipe


@pytest.mark.parametrize("recipe", PREDICTING, ids=lambda one: f"{one.task} {one.model_class}")
def test_a_model_in_a_run_is_used_by_its_recipe(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    run = save_run(tmp_path / "run", recipe, tokenizer)
    for name in ("best", "checkpoints/update-00000002"):
        shutil.copytree(run / "model", run / name)
    for path in (run, run / "model", run / "best", run / "checkpoints" / "update-00000002"):
        assert recipe_of(path) == (recipe, run / "recipe.json")
        assert recipe_of(str(path)) == (recipe, run / "recipe.json")
    assert recipe_of(run, recipe.task) == (recipe, run / "recipe.json")  # type: ignore[arg-type]


def test_a_path_without_parents_is_in_its_run_too(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = save_run(tmp_path / "run", QUESTIONS, tokenizer)
    monkeypatch.chdir(run / "model")
    assert recipe_of(".") == (QUESTIONS, run / "recipe.json")
    monkeypatch.chdir(run)
    assert recipe_of("model") == (QUESTIONS, run / "recipe.json")


@pytest.mark.parametrize("recipe", PREDICTING, ids=lambda one: f"{one.task} {one.model_class}")
def test_a_model_in_no_run_is_used_by_the_defaults(
    recipe: Any, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    run = save_run(tmp_path / "run", recipe, tokenizer)
    model = shutil.copytree(run / "model", tmp_path / "elsewhere" / "model")
    found, file = recipe_of(model, recipe.task)
    assert file is None
    assert (found.name, found.task, found.model_class) == ("", recipe.task, recipe.model_class)
    assert found == default_recipe(recipe.task, recipe_kind(recipe))
    # Without a run to tell, what writes text translates.
    expected = "translation" if recipe_kind(recipe) == "text" else recipe.task
    assert recipe_of(model)[0].task == expected
    # The defaults are those of the functions that do the work.
    if isinstance(found, type(QUESTIONS)):
        assert (found.max_length, found.stride, found.max_question_length) == (384, 128, 64)


def test_a_run_of_another_task_or_kind_decides_nothing(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    run = save_run(tmp_path / "run", TRANSLATION, tokenizer)
    found, file = recipe_of(run, "question_answering")
    assert (found, file) == (default_recipe("question_answering"), None)
    # A copy of another run's model.
    other = save_run(tmp_path / "other", PAIRS, tokenizer)
    shutil.copytree(other / "model", run / "classes")
    assert recipe_of(run / "classes") == (default_recipe("inference", "inference"), None)
    write_recipe(BLOCKS, other / "recipe.json")
    assert recipe_of(other) == (default_recipe("inference", "inference"), None)


def test_what_a_model_cannot_do_is_refused(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    run = save_run(tmp_path / "run", PAIRS, tokenizer)
    with pytest.raises(ValueError, match="for inference, which cannot be used for translation; a"):
        recipe_of(run, "translation")
    (run / "recipe.json").write_text("{}")
    with pytest.raises(ValueError, match=r"no recipe of this version.*copy its directory out of"):
        recipe_of(run)
    with pytest.raises(ValueError, match="holds no model"):
        recipe_of(tmp_path)


# What a recipe predicts


@pytest.mark.parametrize("recipe", PREDICTING, ids=lambda one: f"{one.task} {one.model_class}")
def test_scores_of_a_run_are_those_of_its_predictions(
    recipe: Any, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    recipe = changed(recipe, "decoding.max_tokens_over_source", 2)
    run = save_run(tmp_path / "run", recipe, tokenizer)
    model, vocabulary = load_model(run, "cpu", kind=recipe_kind(recipe))
    texts = dataclasses.replace(recipe, train_limit=9).read()
    few = {split: examples.select(range(9)) for split, examples in texts.tests.items()}
    accelerator = Accelerator()
    scores = recipe.score(model, vocabulary, dataclasses.replace(texts, tests=few), accelerator)[
        "test"
    ]
    data, _ = read_data(recipe.task, "tiny_world", "test", limit=9)
    expected = recipe.predict(model, vocabulary, data, accelerator).score()
    assert expected.pop("seconds") > 0
    # The baseline needs the training data.
    ours = {name: value for name, value in expected.items() if name not in ("slices", "length")}
    assert ours == {name: scores[name] for name in ours}
    assert recipe.describe("a title", scores).startswith("a title")


def test_a_question_or_a_pair_is_a_data_set(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    run = save_run(tmp_path / "run", QUESTIONS, tokenizer)
    model, vocabulary = load_model(run, "cpu", kind="question_answering")
    asked = as_question("Who?", "The dog.")
    assert asked.features.keys() == read_data("question_answering", "tiny_world")[0].features.keys()
    found = QUESTIONS.predict(model, vocabulary, asked, Accelerator())
    assert found.texts["1"] in "The dog."
    assert found.settings == {
        "max_length": 64,
        "stride": 16,
        "max_question_length": 32,
        "max_answer_length": 30,
        "no_answer_threshold": None,
    }
    pair = as_pair("A dog.", "A cat.")
    assert pair.features["label"].names == list(LABELS)
    for blank in (lambda: as_question(" "), lambda: as_pair("", "x"), lambda: as_pair("x", "\n")):
        with pytest.raises(ValueError, match="is blank"):
            blank()


@pytest.mark.parametrize("names", [LABELS, TWO_WAY_LABELS])
def test_labels_are_positions_among_the_names_of_the_set(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, names: tuple[str, ...]
) -> None:
    run = save_run(tmp_path / "run", PAIRS, tokenizer)
    model, vocabulary = load_model(run, "cpu", kind="inference")
    rows = [{"premise": "The dog.", "hypothesis": f"{n} cats", "label": 0} for n in range(20)]
    pairs = Dataset.from_list(rows).cast_column("label", ClassLabel(names=list(names)))
    found = PAIRS.predict(model, vocabulary, pairs, Accelerator())
    assert found.probabilities is not None
    assert found.probabilities.shape == (20, 3)
    assert found.names == names
    best = found.probabilities.argmax(axis=1)
    assert found.labels.tolist() == np.minimum(best, len(names) - 1).tolist()


@pytest.mark.parametrize("task", ["translation", "question_answering", "inference"])
def test_text_of_data_for_a_tokenizer_is_that_of_the_task(task: Task) -> None:
    data, _ = read_data(task, "tiny_world", "train", limit=5)
    recipe = next(one for one in ONE_OF_EACH if one.task == task)
    texts = list(default_recipe(task).all_text(data))
    assert texts == list(recipe.all_text(data))
    assert len(texts) >= 6
