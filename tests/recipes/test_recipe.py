"""What every recipe is: consistent, changed and read back, and the model that it builds."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from tests.recipes.conftest import BLOCKS, ONE_OF_EACH, PAIRS, QUESTIONS, TINY, config_of
from vanilla_transformer import (
    VanillaTransformerConfig,
    VanillaTransformerForConditionalGeneration,
    VanillaTransformerForMaskedLM,
    VanillaTransformerForQuestionAnswering,
    VanillaTransformerForSequenceClassification,
)
from vanilla_transformer.recipes import (
    RECIPES,
    InferenceRecipe,
    PretrainingRecipe,
    QuestionAnsweringRecipe,
    Recipe,
    TranslationRecipe,
    changed,
    check_goes_on,
    find_recipe,
    read_recipe,
    write_recipe,
)

EVERY = [*RECIPES.values(), *ONE_OF_EACH]
NAMES = [recipe.name for recipe in EVERY]


# What the recipes are


@pytest.mark.parametrize("recipe", EVERY, ids=NAMES)
def test_every_recipe_is_consistent(recipe: Recipe) -> None:
    with torch.device("meta"):
        model = recipe.model_class(config_of(recipe))
    assert model.num_parameters() > 0
    training = recipe.training
    assert training.validate_every <= training.updates
    assert training.log_every <= training.updates
    assert training.warmup < training.updates
    # The longest example that is kept fits into a batch.
    assert recipe.max_length <= training.max_source_tokens
    if recipe.model_class is VanillaTransformerForConditionalGeneration:
        assert recipe.max_length <= training.max_target_tokens
    assert recipe.description
    assert not recipe.description.endswith(".")
    # Of a pretrained model there is nothing to score yet.
    assert bool(recipe.test_splits) == (recipe.task != "pretraining")
    # Where there is nothing to download, the command line must say what to give.
    assert recipe.corpus or recipe.data_source
    assert {recipe.train_split, recipe.validation_split}.isdisjoint(recipe.test_splits)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_what_is_averaged_was_saved_after_the_warm_up(recipe: Recipe) -> None:
    training = recipe.training
    averaged = training.average_last * training.checkpoint_every
    assert averaged <= training.updates - training.warmup


def test_recipes_go_by_their_names_and_each_by_its_own_loader() -> None:
    assert all(name == recipe.name for name, recipe in RECIPES.items())
    assert next(iter(RECIPES)) == "tiny-world"
    assert {recipe.task for recipe in RECIPES.values()} <= {
        "translation",
        "question_answering",
        "inference",
        "pretraining",
    }


def test_unknown_recipe() -> None:
    with pytest.raises(ValueError, match=r"no recipe is called 'wmt'; choose from tiny-world, "):
        find_recipe("wmt")


# What a recipe must be


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architecture": {"d_modle": 64}}, r"architecture has no field 'd_modle'; did you mean"),
        ({"architecture": {"vocab_size": 64}}, "architecture has no field 'vocab_size'"),
        ({"architecture": {"d_model": 30, "num_heads": 4}}, "divisible by num_heads"),
    ],
)
def test_a_recipe_that_cannot_work(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(RECIPES["tiny-world"], **fields)


@pytest.mark.parametrize("change", [{"route": "written"}, {"cloze_questions": 9}])
def test_no_answer_goes_with_real_questions_and_spans_only(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="has_no_answer goes with route='span' and real questions"):
        dataclasses.replace(QUESTIONS, has_no_answer=True, **change)


@pytest.mark.parametrize("recipe", ONE_OF_EACH, ids=lambda recipe: recipe.task)
def test_data_have_to_be_given(recipe: Recipe) -> None:
    without = dataclasses.replace(recipe, corpus="", data_source="a folder")
    with pytest.raises(ValueError, match=f"{recipe.name} needs its data: give --data a folder"):
        without.read()


@pytest.mark.parametrize("recipe", [QUESTIONS, PAIRS, BLOCKS], ids=lambda recipe: recipe.task)
def test_two_files_are_parallel_text_and_nothing_else(recipe: Recipe) -> None:
    with pytest.raises(ValueError, match=f"{recipe.name} takes one corpus, not 2 files"):
        dataclasses.replace(recipe, corpus=("a.en", "a.de")).read()


def test_both_spellings_of_dimensions() -> None:
    recipe = dataclasses.replace(RECIPES["tiny-world"], architecture={"hidden_size": 64})
    assert config_of(recipe).d_model == 64


# Read and changed


@pytest.mark.parametrize("recipe", EVERY, ids=NAMES)
def test_a_recipe_reads_back_from_its_json(recipe: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    write_recipe(recipe, path)
    found = read_recipe(path)
    assert found == recipe
    assert type(found) is type(recipe)
    # The task is what a reader sees first.
    assert next(iter(json.loads(path.read_text("utf-8")).items())) == ("task", recipe.task)
    assert [file.name for file in tmp_path.iterdir()] == ["recipe.json"]


@pytest.mark.parametrize(
    ("recipe", "name", "value"),
    [
        (QUESTIONS, "route", "written"),
        (QUESTIONS, "has_no_answer", True),
        (QUESTIONS, "cloze_questions", 99),
        (QUESTIONS, "stride", 4),
        (PAIRS, "route", "written"),
        (BLOCKS, "kind", "question_answering"),
        (BLOCKS, "masked_share", 0.3),
        (QUESTIONS, "training.monitor", "exact_match"),
    ],
)
def test_what_one_task_has_and_others_have_not_reads_back(
    recipe: Recipe, name: str, value: Any, tmp_path: Path
) -> None:
    recipe = changed(recipe, name, value)
    write_recipe(recipe, tmp_path / "recipe.json")
    assert read_recipe(tmp_path / "recipe.json") == recipe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nme": "x"}, r"TranslationRecipe has no field 'nme'; did you mean name\?"),
        ({"has_no_answer": True}, "TranslationRecipe has no field 'has_no_answer'"),
        (
            {"task": "summarization"},
            "its task is 'summarization', not one of inference, pretraining, "
            "question_answering, translation",
        ),
        ({"task": None}, "its task is None, not one of inference"),
        ({"task": []}, ""),
        ({"task": "inference"}, "InferenceRecipe has no field '"),
        ({"training": {"warm": 3}}, "TrainingSettings has no field 'warm'"),
        ({"training": {"warmup": "long"}}, r"warmup \('long'\) must be int"),
        ({"training": {"seed": True}}, r"seed \(True\) must be int"),
        ({"training": {"updates": 0}}, r"updates \(0\) must be at least 1"),
        ({"driver": "horse"}, r"driver \('horse'\) must be one of loop, trainer"),
        ({"test_splits": "test"}, r"test_splits \('test'\) must be tuple"),
        ({"test_splits": [1]}, r"test_splits \(1\) must be str"),
        ({"description": None}, r"description \(None\) must be str"),
    ],
)
def test_a_recipe_file_with_a_wrong_field(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "recipe.json"
    write_recipe(RECIPES["tiny-world"], path)
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | change))
    with pytest.raises(
        ValueError, match=rf"recipe\.json holds no recipe of this version: .*{message}"
    ):
        read_recipe(path)


@pytest.mark.parametrize("text", ["", "[]", "3", "{", '{"name": "x"}', '{"task": "inference"}'])
def test_a_file_that_is_no_recipe(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"recipe\.json holds no recipe of this version"):
        read_recipe(path)
    with pytest.raises(ValueError, match=r"holds no run: there is no recipe\.json in it"):
        read_recipe(tmp_path / "nowhere" / "recipe.json")


def test_changed_values_take_the_type_of_their_field() -> None:
    recipe = changed(RECIPES["tiny-world"], "training.max_minutes", 3)
    assert recipe.training.max_minutes == 3.0
    assert isinstance(recipe.training.max_minutes, float)
    assert changed(recipe, "training.max_minutes", None).training.max_minutes is None
    assert changed(recipe, "corpus", ["a.en", "a.de"]).corpus == ("a.en", "a.de")
    assert changed(recipe, "corpus", "wmt14").corpus == "wmt14"
    assert changed(recipe, "architecture.dropout", 0.2).architecture["dropout"] == 0.2
    # The one given stays as it is.
    assert recipe.corpus == "tiny_world"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("training.updates", 9),
        ("training.max_minutes", 1.0),
        ("training.log_every", 7),
        ("training.precision", "bf16"),
        ("training.accumulation_steps", 4),
        ("decoding.num_beams", 5),
        ("test_splits", []),
        ("driver", "trainer"),
        ("training.validation_examples", 3),
        ("training.sample_predictions", 3),
    ],
)
def test_a_run_goes_on_with_other_ways_of_doing_the_same(name: str, value: Any) -> None:
    recipe = RECIPES["tiny-world"]
    check_goes_on(recipe, changed(recipe, name, value))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("architecture.d_ff", 64),
        ("vocab_size", 999),
        ("training.max_source_tokens", 99),
        ("training.max_target_tokens", 99),
        ("training.seed", 2),
        ("training.warmup", 99),
        ("training.learning_rate_factor", 3.0),
        ("training.ema_decay", 0.9),
        ("training.max_gradient_norm", 1.0),
        ("corpus", "wmt14"),
        ("train_limit", 9),
        ("streaming", True),
        ("target_lang", "fr"),
        ("max_length", 9),
        ("initial_model", "x"),
        ("lowercase", True),
        ("strip_punctuation", True),
        # A best model chosen by one score would be compared by another.
        ("training.monitor", "loss"),
    ],
)
def test_a_run_does_not_become_another_one(name: str, value: Any) -> None:
    recipe = RECIPES["tiny-world"]
    wanted = changed(recipe, name, value)
    message = (
        rf"^{re.escape(name.removesuffix('.d_ff'))} cannot change from .* it would be another run"
    )
    with pytest.raises(ValueError, match=message):
        check_goes_on(recipe, wanted)


def test_a_run_does_not_become_one_of_another_task() -> None:
    for saved in ONE_OF_EACH:
        check_goes_on(saved, saved)
        for wanted in ONE_OF_EACH:
            if wanted is not saved:
                with pytest.raises(ValueError, match=f"^name cannot change from '{saved.name}' to"):
                    check_goes_on(saved, wanted)


# The model


@pytest.mark.parametrize(
    ("recipe", "model_class"),
    [
        (ONE_OF_EACH[0], VanillaTransformerForConditionalGeneration),
        (QUESTIONS, VanillaTransformerForQuestionAnswering),
        (
            dataclasses.replace(QUESTIONS, route="written"),
            VanillaTransformerForConditionalGeneration,
        ),
        (PAIRS, VanillaTransformerForSequenceClassification),
        (dataclasses.replace(PAIRS, route="written"), VanillaTransformerForConditionalGeneration),
        (BLOCKS, VanillaTransformerForMaskedLM),
    ],
)
def test_each_task_has_its_head(
    recipe: Recipe, model_class: type, tokenizer: PreTrainedTokenizerBase
) -> None:
    model, report = recipe.build_model(tokenizer)
    assert type(model) is model_class
    assert report == {"newly_initialised": [], "left_out": []}


def test_a_fresh_model_has_the_vocabulary_of_the_tokenizer(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    recipe = dataclasses.replace(RECIPES["tiny-world"], architecture=TINY)
    config = recipe.build_model(tokenizer)[0].config
    assert config.vocab_size == len(tokenizer)
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, 1, 2)
    assert config.decoder_start_token_id == 1
    assert config.d_model == 16


def test_a_model_given_must_have_room_for_the_vocabulary(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    small = VanillaTransformerConfig(vocab_size=100, **TINY)
    VanillaTransformerForConditionalGeneration(small).save_pretrained(tmp_path)
    message = rf"has 100 embeddings for a tokenizer of {len(tokenizer)} tokens"
    recipe = dataclasses.replace(RECIPES["tiny-world"], initial_model=str(tmp_path))
    with pytest.raises(ValueError, match=message):
        recipe.build_model(tokenizer)


def test_a_head_on_the_encoder_of_another_model_is_told_apart(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """What begins with the weights given, what begins anew, and what of them has no place."""
    config = VanillaTransformerConfig(vocab_size=len(tokenizer), **TINY)
    VanillaTransformerForMaskedLM(config).save_pretrained(tmp_path)
    recipe = dataclasses.replace(
        PAIRS, initial_model=str(tmp_path), architecture={"dropout": 0.3, "pooling": "max"}
    )
    model, report = recipe.build_model(tokenizer)
    assert isinstance(model, VanillaTransformerForSequenceClassification)
    # Dimensions are those of the weights; what has none is the recipe's.
    assert (model.config.d_model, model.config.dropout, model.config.pooling) == (16, 0.3, "max")
    assert model.config.num_labels == 3
    assert set(model.config.label2id) == {"entailment", "neutral", "contradiction"}
    assert report["newly_initialised"]
    assert all("classifier" in name or "dense" in name for name in report["newly_initialised"])


def test_every_task_has_its_class() -> None:
    assert [type(recipe) for recipe in ONE_OF_EACH] == [
        TranslationRecipe,
        QuestionAnsweringRecipe,
        InferenceRecipe,
        PretrainingRecipe,
    ]
