"""Validation on one process; `test_processes.py` compares it with that on several."""

import dataclasses
import math
from collections.abc import Iterator
from typing import NamedTuple

import datasets
import pytest
import sacrebleu
import torch
from accelerate import Accelerator
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, set_seed

from vanilla_transformer import (
    VanillaTransformerConfig,
    VanillaTransformerForConditionalGeneration,
)
from vanilla_transformer.data.tiny_world import generate_translation
from vanilla_transformer.generation import DecodingSettings, TranslationReport, translate
from vanilla_transformer.tasks.translation import encode_pairs
from vanilla_transformer.tokenization import train_tokenizer
from vanilla_transformer.training.settings import TrainingSettings
from vanilla_transformer.training.validation import (
    translate_texts,
    validate_model,
    validation_loss,
    whole_model,
)

DECODING = DecodingSettings(num_beams=2, max_tokens_over_source=2)


class World(NamedTuple):
    model: VanillaTransformerForConditionalGeneration
    tokenizer: PreTrainedTokenizerBase
    text: Dataset
    pairs: Dataset


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    text = list(generate_translation("validation", 9))
    tokenizer = train_tokenizer((side for pair in text for side in pair.values()), 300)
    set_seed(3)
    model = VanillaTransformerForConditionalGeneration(
        VanillaTransformerConfig(
            vocab_size=len(tokenizer),
            d_model=16,
            d_ff=32,
            num_heads=2,
            num_encoder_layers=1,
            num_decoder_layers=1,
        )
    )
    datasets.disable_progress_bars()
    validation = Dataset.from_list(text)
    yield World(model, tokenizer, validation, encode_pairs(validation, tokenizer)[0])
    datasets.enable_progress_bars()


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def test_loss_is_per_token_whatever_the_batches(
    world: World, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    total, tokens = 0.0, 0
    model = world.model.eval()
    for pair in world.pairs:
        labels = torch.tensor([pair["labels"]])
        with torch.no_grad():
            out = model(input_ids=torch.tensor([pair["input_ids"]]), labels=labels)
        rows = out.logits[0].double().log_softmax(-1)
        total -= float(rows[torch.arange(len(rows)), labels[0]].sum())
        tokens += len(rows)
    for budget in (1, 60, 8192):
        monkeypatch.setattr("vanilla_transformer.training.validation._LOSS_BATCH_TOKENS", budget)
        found = validation_loss(accelerator, model, world.tokenizer, world.pairs)
        assert found == pytest.approx(total / tokens, rel=1e-6)


def test_every_source_gets_its_translation_and_the_report_counts_all(
    world: World, accelerator: Accelerator
) -> None:
    sources = [*world.text["source"][:3], "", "too long " * 30, world.text["source"][3]]
    report = TranslationReport()
    found = translate_texts(
        accelerator,
        world.model.eval(),
        world.tokenizer,
        sources,
        DECODING,
        report=report,
        max_source_tokens=40,
    )
    expected = translate(world.model, world.tokenizer, sources, DECODING, max_source_tokens=40)
    assert found == list(expected)
    assert (report.lines, report.empty, list(report.skipped)) == (6, 1, [5])


def test_a_validation_is_loss_bleu_and_samples(world: World, accelerator: Accelerator) -> None:
    settings = TrainingSettings(validation_sentences=5, validation_beams=1, sample_translations=2)
    model = world.model.train()
    found = validate_model(
        accelerator, model, world.tokenizer, world.pairs, world.text, settings, DECODING, {}
    )
    assert model.training
    loss = validation_loss(accelerator, model.eval(), world.tokenizer, world.pairs)
    assert found.scores == {
        "loss": loss,
        "perplexity": pytest.approx(math.exp(loss)),
        "bleu": found.bleu,
    }
    greedy = dataclasses.replace(DECODING, num_beams=1)
    first = world.text.select(range(5))
    translations = [
        hypotheses[0].text
        for hypotheses in translate(model, world.tokenizer, first["source"], greedy)
    ]
    bleu = sacrebleu.corpus_bleu(translations, [list(first["target"])])
    assert found.bleu == pytest.approx(bleu.score)
    rows = zip(first["source"], first["target"], translations, strict=True)
    assert found.samples == tuple(rows)[:2]


def test_translating_compiles_nothing(world: World, accelerator: Accelerator) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a graph was compiled")

    model = world.model
    model.compile(backend=refuse)
    try:
        with whole_model(accelerator, model) as whole:
            assert not whole.training
            found = translate_texts(accelerator, whole, world.tokenizer, ["A dog."], DECODING)
            assert len(found) == 1
    finally:
        model._compiled_call_impl = None
