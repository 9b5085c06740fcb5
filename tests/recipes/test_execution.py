"""Whole runs from text to test scores, refused early where they cannot work; and their cost."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, PreTrainedTokenizerBase

from tests.recipes.conftest import (
    BLOCKS,
    ONE_OF_EACH,
    PAIRS,
    QUESTIONS,
    TINY,
    TRANSLATION,
    config_of,
)
from vanilla_transformer import (
    VanillaTransformerConfig,
    VanillaTransformerForConditionalGeneration,
)
from vanilla_transformer.recipes import (
    RECIPES,
    Recipe,
    both_sides,
    estimate,
    execute,
    read_recipe,
)
from vanilla_transformer.tasks.translation import encode_pairs
from vanilla_transformer.tokenization import load_tokenizer, train_tokenizer
from vanilla_transformer.training.translation import TranslationTask
from vanilla_transformer.training.updates import UpdateStream

# Whole runs


@pytest.mark.parametrize(
    "recipe",
    [
        *ONE_OF_EACH,
        dataclasses.replace(QUESTIONS, has_no_answer=True),
        dataclasses.replace(QUESTIONS, cloze_questions=40),
        dataclasses.replace(PAIRS, lowercase=True),
        dataclasses.replace(QUESTIONS, strip_punctuation=True),
        dataclasses.replace(PAIRS, driver="trainer"),
    ],
    ids=[
        *("texts", "questions", "pairs", "blocks"),
        *("no-answer", "cloze", "lowercase", "stripping", "trainer"),
    ],
)
def test_a_run_of_each_task_goes_from_text_to_scores(
    recipe: Recipe, tmp_path: Path, small_tests: None
) -> None:
    results = execute(recipe, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "results.json").read_text("utf-8")) == json.loads(
        json.dumps(results)
    )
    assert read_recipe(tmp_path / "run" / "recipe.json") == recipe
    assert results["recipe"] == recipe.name
    assert results["task"] == recipe.task
    assert results["training"]["updates"] == 4
    # Of a pretrained model only what was held out.
    splits = {"held out"} if recipe is BLOCKS else set(recipe.test_splits)
    assert results["tests"].keys() == splits
    assert results["initialised"] == {"newly_initialised": [], "left_out": []}
    assert {"corpus", "kept", "skipped", "encoding"} <= results["data"].keys()
    for split, scores in results["tests"].items():
        assert split in recipe.describe(split, scores)
    tokenizer = load_tokenizer(tmp_path / "run" / "tokenizer")
    assert results["vocabulary"] == len(tokenizer)
    assert (tokenizer.tokenize("Dog") == tokenizer.tokenize("dog")) == recipe.lowercase
    assert (tokenizer.tokenize("dog.") == tokenizer.tokenize("dog")) == recipe.strip_punctuation
    config = AutoConfig.from_pretrained(tmp_path / "run" / "model")
    assert config.architectures == [recipe.model_class.__name__]
    assert config.no_answer_threshold == results["fitted"].get("no_answer_threshold")
    assert bool(results["fitted"]) == getattr(recipe, "has_no_answer", False)
    # Scored once more and nothing else: the run is at its end.
    again = execute(recipe, tmp_path / "run", resume=True)
    assert again["training"]["validation"] == results["training"]["validation"]
    assert without_times(again["tests"]) == without_times(results["tests"])


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_times(part) for name, part in value.items() if name != "seconds"}
    return value


def test_a_pretrained_encoder_is_gone_on_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], small_tests: None
) -> None:
    execute(BLOCKS, tmp_path / "first")
    recipe = dataclasses.replace(PAIRS, initial_model=str(tmp_path / "first"))
    capsys.readouterr()
    results = execute(recipe, tmp_path / "second")
    output = capsys.readouterr().out
    initialised = results["initialised"]
    assert initialised["newly_initialised"]
    assert f"newly initialised: {', '.join(initialised['newly_initialised'])}" in output
    assert "left out: " in output
    assert results["parameters"] > 0
    found, expected = (
        load_tokenizer(tmp_path / name / "tokenizer").get_vocab() for name in ("first", "second")
    )
    assert found == expected
    # What was written down is where the model lies.
    saved = read_recipe(tmp_path / "second" / "recipe.json")
    assert saved.initial_model == str(tmp_path / "first" / "model")


@pytest.fixture
def small_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Test and validation sets of a few examples: what is tested is not their size."""
    for name in ("translation", "question_answering", "inference", "pretraining"):
        module = __import__(f"vanilla_transformer.recipes.{name}", fromlist=[name])
        for loader in ("load_parallel", "load_question_answering", "load_inference"):
            load = getattr(module, loader, None)
            if load is not None:
                monkeypatch.setattr(module, loader, few(load))


def few(load: Any) -> Any:
    def load_few(*arguments: Any, limit: int | None = None, **options: Any) -> Any:
        return load(*arguments, limit=limit or 12, **options)

    return load_few


def test_what_cannot_begin_together_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="initial_model and tokenizer exclude each other"):
        execute(dataclasses.replace(TRANSLATION, initial_model="x"), tmp_path, tokenizer="y")
    with pytest.raises(ValueError, match="holds no run to resume"):
        execute(TRANSLATION, tmp_path, resume=True)


def test_a_misfit_model_leaves_no_run(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    small = VanillaTransformerConfig(vocab_size=100, **TINY)
    VanillaTransformerForConditionalGeneration(small).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    recipe = dataclasses.replace(
        RECIPES["tiny-world"],
        train_limit=5,
        test_splits=(),
        initial_model=str(tmp_path / "model"),
    )
    with pytest.raises(ValueError, match="100 embeddings"):
        execute(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# What a run would cost


def test_an_estimate_counts_epochs_and_downloads_nothing(tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPES["tiny-world"], train_limit=2000)
    costs, corpus = estimate(recipe, processes=4)
    assert costs.parameters == build_parameters(recipe)
    assert corpus is not None
    assert corpus.examples == 2000
    assert not corpus.is_counted
    # With a tokenizer its tokens are counted: what batching makes of them is close.
    texts = recipe.read()
    tokenizer = train_tokenizer(both_sides(texts.train), 400)
    tokenizer.save_pretrained(tmp_path)
    pairs, _ = encode_pairs(texts.train, tokenizer)
    stream = UpdateStream(pairs, TranslationTask(tokenizer, texts.validation), recipe.training)
    costs, corpus = estimate(recipe, tokenizer=tmp_path)
    assert corpus is not None
    assert corpus.is_counted
    assert corpus.source_tokens == pytest.approx(sum(map(len, pairs["input_ids"])), rel=0.02)
    assert costs.updates_per_epoch == pytest.approx(len(stream), rel=0.1)
    assert costs.config.vocab_size == len(tokenizer)
    # A corpus on the Hub, or one yet to be given, is not read.
    assert RECIPES["wmt14-en-de-base"].measure() is None
    assert RECIPES["tatoeba-en-fr"].measure() is None
    with pytest.raises(ValueError, match="an estimate downloads nothing"):
        estimate(dataclasses.replace(recipe, initial_model="someone/model"))


def build_parameters(recipe: Recipe) -> int:
    return VanillaTransformerForConditionalGeneration(config_of(recipe)).num_parameters()


def test_an_estimate_for_fine_tuning_is_of_the_model_given(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    config = VanillaTransformerConfig(vocab_size=len(tokenizer), **TINY)
    VanillaTransformerForConditionalGeneration(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    recipe = dataclasses.replace(RECIPES["tiny-world"], initial_model=str(tmp_path), train_limit=20)
    costs, corpus = estimate(recipe)
    assert costs.config.d_model == 16
    assert corpus is not None
    assert corpus.is_counted
