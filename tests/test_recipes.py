"""Recipes: the paper's numbers section by section, and runs that cannot work refused early."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi

from vanilla_transformer import (
    PAPER_ARCHITECTURES,
    VanillaTransformerConfig,
    VanillaTransformerForConditionalGeneration,
)
from vanilla_transformer.data.corpora import _TINY_WORLD_SIZES
from vanilla_transformer.evaluation import load_metric
from vanilla_transformer.recipes import (
    RECIPES,
    Recipe,
    build_model,
    execute,
    find_recipe,
    load_model,
    locate_model,
)
from vanilla_transformer.tokenization import train_tokenizer

TINY = {
    "d_model": 16,
    "d_ff": 32,
    "num_heads": 2,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
}


def config_of(recipe: Recipe) -> VanillaTransformerConfig:
    return VanillaTransformerConfig(vocab_size=recipe.vocab_size, **recipe.architecture)


# What the recipes are


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_every_recipe_is_consistent(recipe: Recipe) -> None:
    with torch.device("meta"):
        model = VanillaTransformerForConditionalGeneration(config_of(recipe))
    assert model.num_parameters() > 0
    training = recipe.training
    assert training.validate_every <= training.updates
    assert training.log_every <= training.updates
    assert training.warmup < training.updates
    # As many checkpoints as are averaged, all from after the warm-up.
    averaged = training.average_last * training.checkpoint_every
    assert averaged <= training.updates - training.warmup
    # The longest pair that is kept fits into a batch.
    assert recipe.max_length <= min(training.max_source_tokens, training.max_target_tokens)
    assert recipe.description
    assert not recipe.description.endswith(".")
    assert recipe.source_lang != recipe.target_lang
    assert recipe.test_splits
    assert {recipe.train_split, recipe.validation_split}.isdisjoint(recipe.test_splits)
    # A recipe can be read back from the recipe.json of a run.
    assert json.loads(json.dumps(dataclasses.asdict(recipe)))["name"] == recipe.name
    load_metric("bleu", **recipe.bleu).compute(predictions=["a b"], references=["a b"])


def test_names_are_those_of_the_table() -> None:
    assert all(name == recipe.name for name, recipe in RECIPES.items())
    assert {"tiny-world", "multi30k-en-de", "wmt14-en-de-base", "wmt14-en-de-big"} <= set(RECIPES)


@pytest.mark.parametrize("size", ["base", "big"])
def test_paper_recipes_are_the_paper(size: str) -> None:
    recipe = find_recipe(f"wmt14-en-de-{size}")
    config, training, decoding = config_of(recipe), recipe.training, recipe.decoding
    # 5.1: WMT 2014 English-German, about 37,000 tokens, batches of about 25,000 on either side.
    assert (recipe.corpus, recipe.source_lang, recipe.target_lang) == ("wmt14", "en", "de")
    assert recipe.vocab_size == 37_000
    assert (training.max_source_tokens, training.max_target_tokens) == (25_000, 25_000)
    # 5.2: 100,000 updates for base, 300,000 for big.
    assert training.updates == {"base": 100_000, "big": 300_000}[size]
    # 5.3: eq. 3 with 4,000 updates of warm-up and no factor.
    assert training.warmup == 4000
    assert training.learning_rate_factor == 1.0
    assert training.max_gradient_norm is None
    # 5.4: label smoothing 0.1; dropout 0.1 for base, 0.3 for big (Table 3).
    assert config.label_smoothing == 0.1
    assert config.dropout == {"base": 0.1, "big": 0.3}[size]
    # Table 3.
    dimensions = (config.d_model, config.d_ff, config.num_heads, config.d_k, config.d_v)
    assert dimensions == {"base": (512, 2048, 8, 64, 64), "big": (1024, 4096, 16, 64, 64)}[size]
    assert (config.num_encoder_layers, config.num_decoder_layers) == (6, 6)
    assert config.to_diff_dict() == (
        VanillaTransformerConfig(vocab_size=37_000, **PAPER_ARCHITECTURES[size]).to_diff_dict()
    )
    # 6.1: the last 5 checkpoints for base, 20 for big; beam 4, alpha 0.6, input length + 50.
    assert training.average_last == {"base": 5, "big": 20}[size]
    assert (decoding.num_beams, decoding.length_penalty) == (4, 0.6)
    assert decoding.length_penalty_formula == "paper"
    assert decoding.max_tokens_over_source == 50
    assert not decoding.do_sample


def test_multi30k_follows_its_protocol() -> None:
    recipe = find_recipe("multi30k-en-de")
    assert recipe.bleu == {"tokenize": "none", "lowercase": True}
    assert recipe.decoding.num_beams == 5
    assert recipe.test_splits[0] == "test_2016_flickr"
    config = config_of(recipe)
    assert (config.d_model, config.d_ff, config.num_heads) == (128, 256, 4)
    assert (config.num_encoder_layers, config.num_decoder_layers) == (4, 4)
    assert config.dropout == 0.3


def test_tiny_world_has_the_splits_of_its_recipe() -> None:
    recipe = find_recipe("tiny-world")
    splits = {recipe.train_split, recipe.validation_split, *recipe.test_splits}
    assert splits <= set(_TINY_WORLD_SIZES)


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
        ({"bleu": {"lowercased": True}}, r"bleu has no field 'lowercased'; did you mean lowercase"),
    ],
)
def test_a_recipe_that_cannot_work(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(RECIPES["tiny-world"], **fields)


def test_both_spellings_of_dimensions() -> None:
    recipe = dataclasses.replace(RECIPES["tiny-world"], architecture={"hidden_size": 64})
    assert config_of(recipe).d_model == 64


# Models


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(["The dog sees the cat.", "Der Hund sieht die Katze."] * 20, 280)


def test_a_fresh_model_has_the_vocabulary_of_the_tokenizer(tokenizer: Any) -> None:
    recipe = dataclasses.replace(RECIPES["tiny-world"], architecture=TINY)
    config = build_model(recipe, tokenizer).config
    assert config.vocab_size == len(tokenizer)
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, 1, 2)
    assert config.decoder_start_token_id == 1
    assert config.d_model == 16


def test_a_model_given_must_have_room_for_the_vocabulary(tokenizer: Any, tmp_path: Path) -> None:
    small = VanillaTransformerConfig(vocab_size=100, **TINY)
    VanillaTransformerForConditionalGeneration(small).save_pretrained(tmp_path)
    message = rf"has 100 embeddings for a tokenizer of {len(tokenizer)} tokens"
    with pytest.raises(ValueError, match=message):
        build_model(RECIPES["tiny-world"], tokenizer, tmp_path)


def test_a_misfit_model_leaves_no_run(tokenizer: Any, tmp_path: Path) -> None:
    small = VanillaTransformerConfig(vocab_size=100, **TINY)
    VanillaTransformerForConditionalGeneration(small).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    recipe = dataclasses.replace(RECIPES["tiny-world"], train_limit=5, test_splits=())
    with pytest.raises(ValueError, match="100 embeddings"):
        execute(recipe, tmp_path / "run", initial_model=tmp_path / "model")
    assert not (tmp_path / "run").exists()


def test_a_model_is_found_by_its_directory_or_its_run(tokenizer: Any, tmp_path: Path) -> None:
    config = VanillaTransformerConfig(vocab_size=len(tokenizer), **TINY)
    model = VanillaTransformerForConditionalGeneration(config)
    for directory in (tmp_path / "single", tmp_path / "run" / "model"):
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
    assert locate_model(tmp_path / "single") == str(tmp_path / "single")
    assert locate_model(str(tmp_path / "run")) == str(tmp_path / "run" / "model")
    loaded, vocabulary = load_model(tmp_path / "run", "cpu")
    assert not loaded.training
    assert loaded.device.type == "cpu"
    assert len(vocabulary) == len(tokenizer)
    with pytest.raises(ValueError, match="holds no model"):
        locate_model(tmp_path)


def test_the_hub_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(HfApi, "model_info", lambda self, name, **_: asked.append(name))
    assert locate_model("someone/model") == "someone/model"
    assert asked == ["someone/model"]
    with pytest.raises(ValueError, match="neither a directory nor a model that the Hub gave"):
        locate_model("a/b/c")
