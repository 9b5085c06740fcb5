"""Translation recipes: the paper's numbers section by section, and the text they read."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from tests.recipes.conftest import TINY, TRANSLATION, config_of
from vanilla_transformer import (
    PAPER_ARCHITECTURES,
    VanillaTransformerConfig,
    VanillaTransformerForConditionalGeneration,
)
from vanilla_transformer.data.corpora import _TINY_WORLD_SIZES
from vanilla_transformer.data.tiny_world import generate_translation
from vanilla_transformer.evaluation import load_metric
from vanilla_transformer.generation import DecodingSettings, translate
from vanilla_transformer.recipes import RECIPES, find_recipe, translation
from vanilla_transformer.recipes.recipe import Texts
from vanilla_transformer.training.optimization import learning_rate
from vanilla_transformer.training.translation import translate_texts

NAMES = [recipe.name for recipe in translation.RECIPES]


@pytest.mark.parametrize("recipe", translation.RECIPES, ids=NAMES)
def test_every_translation_recipe_is_consistent(recipe: translation.TranslationRecipe) -> None:
    training = recipe.training
    # The longest pair that is kept fits into a batch.
    assert recipe.max_length <= min(training.max_source_tokens, training.max_target_tokens)
    assert recipe.source_lang != recipe.target_lang
    load_metric("bleu", **recipe.bleu).compute(predictions=["a b"], references=["a b"])


def test_names_are_those_of_the_table() -> None:
    paper = {f"wmt14-en-{target}-{size}" for target in ("de", "fr") for size in ("base", "big")}
    others = {"iwslt14-de-en", "iwslt17-de-en", "wmt16-en-ro", "multi30k-en-de", "tatoeba-en-fr"}
    assert paper | others | {"tiny-world", "multi30k-en-de-hour"} == set(NAMES)


def test_an_option_that_bleu_has_not_is_refused() -> None:
    message = r"bleu has no field 'lowercased'; did you mean lowercase"
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(RECIPES["tiny-world"], bleu={"lowercased": True})


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


@pytest.mark.parametrize("name", [name for name in NAMES if name != "tiny-world"])
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
    texts = recipe.read()
    assert len(set(texts.validation["source"])) == 20
    assert len(texts.train) + len(texts.validation) == texts.report.kept == 200
    assert not set(texts.train["source"]) & set(texts.validation["source"])
    with pytest.raises(ValueError, match="cannot be held out of streamed data"):
        dataclasses.replace(recipe, streaming=True).read()


def test_a_recipe_without_text_says_what_to_give() -> None:
    message = "tatoeba-en-fr needs its data: give --data a folder of Tatoeba English-French"
    with pytest.raises(ValueError, match=message):
        RECIPES["tatoeba-en-fr"].read()


def test_two_text_files_are_a_corpus(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus", all=30)
    recipe = dataclasses.replace(
        RECIPES["tiny-world"],
        corpus=(str(folder / "all.en"), str(folder / "all.de")),
        test_splits=(),
    )
    assert len(recipe.read().train) == 30


def test_the_tokenizer_learns_from_both_sides() -> None:
    texts = dataclasses.replace(TRANSLATION, train_limit=3).read()
    expected = [*texts.train["source"], *texts.train["target"]]
    assert list(TRANSLATION.all_text(texts.train)) == expected


# Scores


def test_the_sentences_of_a_test_set_are_shared_out_among_processes(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = VanillaTransformerConfig(vocab_size=len(tokenizer), **TINY)
    model = VanillaTransformerForConditionalGeneration(config).eval()
    pairs = Dataset.from_dict({"source": ["The dog.", "A cat."], "target": ["Ein Hund.", "x"]})
    accelerator = Accelerator()
    asked = []

    def shared_out(*arguments: Any, **options: Any) -> Any:
        asked.append(arguments[0])
        return translate_texts(*arguments, **options)

    monkeypatch.setattr(translation, "translate_texts", shared_out)
    recipe = dataclasses.replace(TRANSLATION, decoding=DecodingSettings(max_tokens_over_source=2))
    found = recipe.predict(model, tokenizer, pairs, accelerator)
    assert asked == [accelerator]
    alone = list(translate(model, tokenizer, pairs["source"], recipe.decoding))
    assert found.texts == [hypotheses[0].text for hypotheses in alone]
    scores = found.score()
    assert (scores["sentences"], scores["too_long"]) == (2, 0)
    assert scores["decoding"] == dataclasses.asdict(recipe.decoding)
    (split,) = recipe.score(
        model, tokenizer, Texts(pairs, pairs, {"test": pairs}, None), accelerator
    ).values()
    assert {**split, "seconds": 0} == {**scores, "seconds": 0}
    # A line a translation, whatever is in it, and empty ones for what is too long.
    found = recipe.predict(model, tokenizer, pairs, accelerator, max_source_tokens=1)
    assert (found.texts, found.score()["too_long"]) == (["", ""], 2)
    dataclasses.replace(found, texts=["a\nb\u2028c", ""]).write(tmp_path / "texts")
    assert (tmp_path / "texts").read_bytes() == b"a b c\n\n"


def test_scores_are_told_with_their_signatures(tokenizer: PreTrainedTokenizerBase) -> None:
    config = VanillaTransformerConfig(vocab_size=len(tokenizer), **TINY)
    model = VanillaTransformerForConditionalGeneration(config).eval()
    pairs = Dataset.from_dict({"source": ["The dog."], "target": ["Ein Hund."]})
    recipe = dataclasses.replace(TRANSLATION, decoding=DecodingSettings(max_tokens_over_source=2))
    scores = recipe.predict(model, tokenizer, pairs, Accelerator()).score()
    title, *lines = TRANSLATION.describe("newstest", scores).splitlines()
    assert title == "newstest: 1 sentences"
    assert [line.split()[0] for line in lines] == ["BLEU", "chrF", "TER"]
    for line, name in zip(lines, ("bleu", "chrf", "ter"), strict=True):
        assert f"{scores[name]['score']:.2f}" in line
        assert scores[name]["signature"] in line
