"""Translation as a task: pairs of texts, translated and scored while the model learns."""

import dataclasses
import math

import pytest
import sacrebleu
import torch
from accelerate import Accelerator

from tests.training.tiny_run import DECODING, World, make_model
from vanilla_transformer.generation import DecodingSettings, TranslationReport, translate
from vanilla_transformer.training.settings import TrainingSettings
from vanilla_transformer.training.translation import (
    TextToTextTask,
    TranslationTask,
    translate_texts,
)
from vanilla_transformer.training.validation import validation_loss


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def test_every_source_gets_its_translation_and_the_report_counts_all(
    world: World, accelerator: Accelerator
) -> None:
    sources = [
        *world.validation["source"][:3],
        "",
        "too long " * 30,
        world.validation["source"][3],
    ]
    report = TranslationReport()
    model = make_model().eval()
    found = translate_texts(
        accelerator, model, world.tokenizer, sources, DECODING, report=report, max_source_tokens=40
    )
    expected = translate(model, world.tokenizer, sources, DECODING, max_source_tokens=40)
    assert found == list(expected)
    assert (report.lines, report.empty, list(report.skipped)) == (6, 1, [5])


def test_a_validation_is_loss_bleu_and_samples(world: World, accelerator: Accelerator) -> None:
    settings = TrainingSettings(validation_examples=5, validation_beams=1, sample_predictions=2)
    model = make_model(dropout=0.1).train()
    task = world.task()
    found = task.validate(accelerator, model, settings)
    assert model.training
    loss = validation_loss(accelerator, model.eval(), task, task.validation_pairs)
    assert list(found.scores) == ["loss", "perplexity", "bleu"]
    assert found.scores["loss"] == loss
    assert found.scores["perplexity"] == pytest.approx(math.exp(loss))
    greedy = dataclasses.replace(DECODING, num_beams=1)
    first = world.validation.select(range(5))
    translations = [
        hypotheses[0].text
        for hypotheses in translate(model, world.tokenizer, first["source"], greedy)
    ]
    bleu = sacrebleu.corpus_bleu(translations, [list(first["target"])])
    assert found.scores["bleu"] == pytest.approx(bleu.score)
    rows = zip(first["source"], first["target"], translations, strict=True)
    assert found.samples == tuple(rows)[:2]


def test_every_score_that_a_task_names_comes_of_its_validation(
    world: World, accelerator: Accelerator
) -> None:
    settings = TrainingSettings(validation_examples=1, sample_predictions=0)
    task = world.task()
    found = task.validate(accelerator, make_model(), settings)
    assert set(found.scores) == {"loss", *task.metrics}
    assert task.metrics[0] == "bleu"
    assert found.samples == ()


def test_a_loss_beyond_measure_has_a_perplexity_all_the_same(
    world: World, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "vanilla_transformer.training.translation.validation_loss", lambda *_: 5000.0
    )
    settings = TrainingSettings(validation_examples=1)
    scores = world.task().validate(accelerator, make_model(), settings).scores
    assert (scores["loss"], scores["perplexity"]) == (5000.0, math.exp(700))


def test_options_of_bleu_decide_the_score(world: World) -> None:
    reference = world.validation.select([0])
    spelt_otherwise = [reference["target"][0].upper()]
    assert world.task().score(spelt_otherwise, reference)["bleu"] < 99
    task = world.task(bleu={"lowercase": True})
    assert task.score(spelt_otherwise, reference)["bleu"] == pytest.approx(100)


def test_the_decoding_is_stored_in_the_model_and_validation_takes_its_own_beams(
    world: World, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoding = DecodingSettings(num_beams=3, num_hypotheses=2, max_tokens_over_source=1)
    task = world.task(decoding=decoding)
    model = make_model()
    task.prepare(model)
    assert model.generation_config.num_beams == 3
    assert model.generation_config.max_tokens_over_source == 1
    asked: list[DecodingSettings] = []

    def note(*arguments: object) -> object:
        asked.append(arguments[4])
        return translate_texts(*arguments)

    monkeypatch.setattr("vanilla_transformer.training.translation.translate_texts", note)
    task.validate(accelerator, model, TrainingSettings(validation_examples=1, validation_beams=2))
    assert asked == [dataclasses.replace(decoding, num_beams=2, num_hypotheses=1)]


def test_an_idle_pair_teaches_nothing_and_has_the_shape_of_its_own(world: World) -> None:
    task = world.task()
    pair = world.pairs[0]
    idle = task.idle(pair)
    assert idle["input_ids"] == pair["input_ids"]
    assert idle["labels"] == [-100] * len(pair["labels"])
    # The pair itself stays what it was.
    assert pair["labels"] == world.pairs[0]["labels"]
    loss = make_model()(**task.collate([idle]), num_items_in_batch=7).loss
    assert loss.detach() == 0
    loss.backward()


def test_items_are_the_tokens_of_the_target(world: World) -> None:
    batch = [world.pairs[row] for row in (0, 3, 8)]
    task = world.task()
    piece = task.collate(batch)
    assert task.count(batch) == sum(len(pair["labels"]) for pair in batch)
    assert task.count(batch) == int((piece["labels"] != -100).sum())
    filled, padded = task.padding(piece)
    assert filled == sum(len(pair["input_ids"]) for pair in batch) + task.count(batch)
    assert padded == piece["input_ids"].numel() + piece["labels"].numel()
    assert all(isinstance(tensor, torch.Tensor) for tensor in piece.values())


def test_another_task_that_writes_text_has_to_score_alone(
    world: World, accelerator: Accelerator
) -> None:
    class LengthTask(TextToTextTask):
        metrics = ("length", "perplexity")

        def score(self, predictions: list[str], validation: object) -> dict[str, float]:
            assert len(predictions) == len(validation)
            # All columns of the validation data are there.
            assert {"source", "target", "id"} <= set(validation.column_names)
            return {"length": float(len(predictions))}

    validation = world.validation.add_column("id", list(range(7)))
    task = LengthTask(world.tokenizer, validation, decoding=DECODING)
    settings = TrainingSettings(validation_examples=4)
    found = task.validate(accelerator, make_model(), settings)
    assert found.scores["length"] == 4
    assert list(found.scores) == ["loss", "perplexity", "length"]
    assert not isinstance(task, TranslationTask)


def test_no_text_to_validate_on_is_refused(world: World) -> None:
    with pytest.raises(ValueError, match="no text to validate on"):
        TranslationTask(world.tokenizer, world.validation.select([]))
