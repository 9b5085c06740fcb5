"""Recipes: the paper's numbers section by section, and runs that cannot work refused early."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from huggingface_hub import HfApi

from vanilla_transformer import (
    PAPER_ARCHITECTURES,
    VanillaTransformerConfig,
    VanillaTransformerForConditionalGeneration,
    recipes,
)
from vanilla_transformer.data.corpora import _TINY_WORLD_SIZES
from vanilla_transformer.data.tiny_world import generate_translation
from vanilla_transformer.evaluation import load_metric
from vanilla_transformer.generation import DecodingSettings
from vanilla_transformer.recipes import (
    RECIPES,
    Recipe,
    both_sides,
    build_model,
    changed,
    check_goes_on,
    estimate,
    execute,
    find_recipe,
    load_model,
    locate_model,
    measure_corpus,
    read_recipe,
    read_texts,
    score_corpus,
)
from vanilla_transformer.tasks.translation import encode_pairs
from vanilla_transformer.tokenization import train_tokenizer
from vanilla_transformer.training.optimization import learning_rate
from vanilla_transformer.training.updates import UpdateStream
from vanilla_transformer.training.validation import translate_texts

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
    # Where there is nothing to download, the command line must say what to give.
    assert recipe.corpus or recipe.data_source
    assert {recipe.train_split, recipe.validation_split}.isdisjoint(recipe.test_splits)
    load_metric("bleu", **recipe.bleu).compute(predictions=["a b"], references=["a b"])


def test_names_are_those_of_the_table() -> None:
    assert all(name == recipe.name for name, recipe in RECIPES.items())
    paper = {f"wmt14-en-{target}-{size}" for target in ("de", "fr") for size in ("base", "big")}
    others = {"iwslt14-de-en", "iwslt17-de-en", "wmt16-en-ro", "multi30k-en-de", "tatoeba-en-fr"}
    assert paper | others | {"tiny-world", "multi30k-en-de-hour"} == set(RECIPES)


@pytest.mark.parametrize("target", ["de", "fr"])
@pytest.mark.parametrize("size", ["base", "big"])
def test_paper_recipes_are_the_paper(size: str, target: str) -> None:
    recipe = find_recipe(f"wmt14-en-{target}-{size}")
    config, training, decoding = config_of(recipe), recipe.training, recipe.decoding
    # 5.1: WMT 2014, about 37,000 tokens for German and 32,000 for French, batches of about 25,000
    # on either side.
    assert (recipe.corpus, recipe.source_lang, recipe.target_lang) == ("wmt14", "en", target)
    assert recipe.vocab_size == {"de": 37_000, "fr": 32_000}[target]
    assert (training.max_source_tokens, training.max_target_tokens) == (25_000, 25_000)
    # 5.2: 100,000 updates for base, 300,000 for big.
    assert training.updates == {"base": 100_000, "big": 300_000}[size]
    # 5.3: eq. 3 with 4,000 updates of warm-up and no factor.
    assert training.warmup == 4000
    assert training.learning_rate_factor == 1.0
    assert training.max_gradient_norm is None
    # 5.4: label smoothing 0.1; dropout 0.1 for base, 0.3 for big (Table 3), but 0.1 for the big
    # model of French (6.1).
    assert config.label_smoothing == 0.1
    assert config.dropout == (0.3 if (size, target) == ("big", "de") else 0.1)
    # Table 3.
    dimensions = (config.d_model, config.d_ff, config.num_heads, config.d_k, config.d_v)
    assert dimensions == {"base": (512, 2048, 8, 64, 64), "big": (1024, 4096, 16, 64, 64)}[size]
    assert (config.num_encoder_layers, config.num_decoder_layers) == (6, 6)
    expected = {**PAPER_ARCHITECTURES[size], "dropout": config.dropout}
    assert config.to_diff_dict() == (
        VanillaTransformerConfig(vocab_size=recipe.vocab_size, **expected).to_diff_dict()
    )
    # 6.1: the last 5 checkpoints for base, 20 for big, at 10-minute intervals of updates that took
    # 0.4 and 1.0 seconds (5.2); beam 4, alpha 0.6, input length + 50.
    assert training.average_last == {"base": 5, "big": 20}[size]
    assert training.checkpoint_every * {"base": 0.4, "big": 1.0}[size] == 600
    assert (decoding.num_beams, decoding.length_penalty) == (4, 0.6)
    assert decoding.length_penalty_formula == "paper"
    assert decoding.max_tokens_over_source == 50
    assert not decoding.do_sample
    # Table 2.
    figure = {"base": {"de": 27.3, "fr": 38.1}, "big": {"de": 28.4, "fr": 41.8}}[size][target]
    assert recipe.published.startswith(f"{figure} BLEU on newstest2014 (paper, Table 2")


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "tiny-world"])
def test_a_figure_aimed_at_comes_with_its_source(name: str) -> None:
    published = find_recipe(name).published
    assert re.match(r"\d\d\.\d+ BLEU on \S|none ", published)
    assert re.search(r"paper, Table|README|model card", published)


def test_iwslt14_has_the_peak_rate_of_fairseq() -> None:
    recipe = find_recipe("iwslt14-de-en")
    config, training = config_of(recipe), recipe.training
    rates = [
        learning_rate(n, config.d_model, training.warmup, training.learning_rate_factor)
        for n in (training.warmup, training.warmup + 1)
    ]
    assert rates[0] == pytest.approx(5e-4, rel=1e-3)
    assert rates[1] < rates[0]
    # transformer_iwslt_de_en.
    assert (config.d_model, config.d_ff, config.num_heads) == (512, 1024, 4)
    assert (config.num_encoder_layers, config.num_decoder_layers, config.dropout) == (6, 6, 0.3)


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


# Read and changed


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_a_recipe_reads_back_from_its_json(recipe: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(dataclasses.asdict(recipe)))
    assert read_recipe(path) == recipe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nme": "x"}, r"Recipe has no field 'nme'; did you mean name\?"),
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
    path.write_text(json.dumps(dataclasses.asdict(RECIPES["tiny-world"]) | change))
    with pytest.raises(
        ValueError, match=rf"recipe\.json holds no recipe of this version: .*{message}"
    ):
        read_recipe(path)


@pytest.mark.parametrize("text", ["", "[]", "3", "{", '{"name": "x"}'])
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


# Text


def write_corpus(folder: Path, **counts: int) -> Path:
    """A folder of tiny_world's text with these splits."""
    folder.mkdir()
    for split, count in counts.items():
        pairs = list(generate_translation("train", count))
        for lang, side in (("en", "source"), ("de", "target")):
            text = "".join(pair[side] + "\n" for pair in pairs)
            (folder / f"{split}.{lang}").write_text(text, encoding="utf-8")
    return folder


def test_a_corpus_without_a_validation_split_lends_some_of_its_sentences(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus", train=200)
    recipe = dataclasses.replace(
        RECIPES["tiny-world"],
        corpus=str(folder),
        train_limit=None,
        test_splits=(),
        validation_split=None,
        held_out=20,
    )
    texts = read_texts(recipe)
    assert len(set(texts.validation["source"])) == 20
    assert len(texts.train) + len(texts.validation) == texts.report.kept == 200
    assert not set(texts.train["source"]) & set(texts.validation["source"])
    with pytest.raises(ValueError, match="cannot be held out of streamed data"):
        read_texts(dataclasses.replace(recipe, streaming=True))


def test_a_recipe_without_text_says_what_to_give() -> None:
    message = "tatoeba-en-fr needs its text: give --data a folder of Tatoeba English-French"
    with pytest.raises(ValueError, match=message):
        read_texts(RECIPES["tatoeba-en-fr"])


def test_two_text_files_are_a_corpus(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus", all=30)
    recipe = dataclasses.replace(
        RECIPES["tiny-world"],
        corpus=(str(folder / "all.en"), str(folder / "all.de")),
        test_splits=(),
    )
    assert len(read_texts(recipe).train) == 30


# What a run would cost


def test_an_estimate_counts_epochs_and_downloads_nothing(tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPES["tiny-world"], train_limit=2000)
    costs, corpus = estimate(recipe, processes=4)
    assert costs.parameters == build_parameters(recipe)
    assert corpus is not None
    assert corpus.pairs == 2000
    assert not corpus.is_counted
    # With a tokenizer its tokens are counted: what batching makes of them is close.
    texts = read_texts(recipe)
    tokenizer = train_tokenizer(both_sides(texts.train), 400)
    tokenizer.save_pretrained(tmp_path)
    pairs, _ = encode_pairs(texts.train, tokenizer)
    stream = UpdateStream(pairs, tokenizer, recipe.training)
    costs, corpus = estimate(recipe, tokenizer=tmp_path)
    assert corpus is not None
    assert corpus.is_counted
    assert corpus.source_tokens == pytest.approx(sum(map(len, pairs["input_ids"])), rel=0.02)
    assert costs.updates_per_epoch == pytest.approx(len(stream), rel=0.1)
    assert costs.config.vocab_size == len(tokenizer)
    # A corpus on the Hub, or one yet to be given, is not read.
    assert measure_corpus(RECIPES["wmt14-en-de-base"]) is None
    assert measure_corpus(RECIPES["tatoeba-en-fr"]) is None
    with pytest.raises(ValueError, match="an estimate downloads nothing"):
        estimate(dataclasses.replace(recipe, initial_model="someone/model"))


def build_parameters(recipe: Recipe) -> int:
    return VanillaTransformerForConditionalGeneration(config_of(recipe)).num_parameters()


def test_an_estimate_for_fine_tuning_is_of_the_model_given(tokenizer: Any, tmp_path: Path) -> None:
    config = VanillaTransformerConfig(vocab_size=len(tokenizer), **TINY)
    VanillaTransformerForConditionalGeneration(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    recipe = dataclasses.replace(RECIPES["tiny-world"], initial_model=str(tmp_path), train_limit=20)
    costs, corpus = estimate(recipe)
    assert costs.config.d_model == 16
    assert corpus is not None
    assert corpus.is_counted


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
    recipe = dataclasses.replace(RECIPES["tiny-world"], initial_model=str(tmp_path))
    with pytest.raises(ValueError, match=message):
        build_model(recipe, tokenizer)


def test_a_misfit_model_leaves_no_run(tokenizer: Any, tmp_path: Path) -> None:
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


def test_the_sentences_of_a_test_set_are_shared_out_among_processes(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = VanillaTransformerConfig(vocab_size=len(tokenizer), **TINY)
    model = VanillaTransformerForConditionalGeneration(config).eval()
    pairs = Dataset.from_dict({"source": ["The dog.", "A cat."], "target": ["Ein Hund.", "x"]})
    accelerator = Accelerator()
    asked = []

    def shared_out(*arguments: Any, **options: Any) -> Any:
        asked.append(arguments[0])
        return translate_texts(*arguments, **options)

    monkeypatch.setattr(recipes, "translate_texts", shared_out)
    decoding = DecodingSettings(max_tokens_over_source=2)
    alone, texts = score_corpus(model, tokenizer, pairs, decoding, {})
    assert asked == []
    together, same_texts = score_corpus(
        model, tokenizer, pairs, decoding, {}, accelerator=accelerator
    )
    assert asked == [accelerator]
    assert same_texts == texts
    assert {**together, "seconds": 0} == {**alone, "seconds": 0}
