"""Inference as a run learns it, compared with what is computed pair by pair."""

import contextlib
import dataclasses
import pickle
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import ClassLabel, Dataset
from transformers import PreTrainedModel

from tests.training import tiny_tasks
from tests.training.tiny_run import assert_same_run, read_log
from tests.training.tiny_tasks import DECODING, SETTINGS, Case, config, tokenizer
from vanilla_transformer import VanillaTransformerForSequenceClassification
from vanilla_transformer.data.inference_corpora import LABELS, TWO_WAY_LABELS
from vanilla_transformer.tasks.natural_language_inference import encode_inference, predict_logits
from vanilla_transformer.training import inference as module
from vanilla_transformer.training.inference import (
    InferenceTask,
    LabelWritingTask,
    classify_pairs,
    write_labels,
)
from vanilla_transformer.training.loop import train
from vanilla_transformer.training.trainer import train_with_trainer
from vanilla_transformer.training.updates import Share

# Another order than that of the data sets.
MODEL_LABELS = tuple(reversed(LABELS))
TWO_LABELS = {"id2label": {0: "not_entailment", 1: "entailment"}}


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture(scope="module")
def case() -> Case:
    return tiny_tasks.classes()


def some_pairs(count: int, *, unlabelled: int = 0, names: tuple[str, ...] = LABELS) -> Dataset:
    """Validation pairs, the first of them without a label."""
    given = tiny_tasks.pairs("validation", 40).select(range(count))
    features = given.features.copy()
    features["label"] = ClassLabel(names=list(names))
    rows = [
        {**row, "label": -1 if number < unlabelled else min(row["label"], len(names) - 1)}
        for number, row in enumerate(given)
    ]
    return Dataset.from_list(rows, features=features)


def classifier(head: Any, **options: Any) -> PreTrainedModel:
    """Random, and of many minds."""
    model = tiny_tasks.maker(head, **options)(0.5).eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        encoded, _ = encode_inference(some_pairs(30), tokenizer(), model.config, for_training=False)
        middle = predict_logits(model, encoded, tokenizer()).mean(axis=0)
        model.classifier.bias -= torch.from_numpy(middle)
    return model


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return classifier(
        VanillaTransformerForSequenceClassification, id2label=dict(enumerate(MODEL_LABELS))
    )


@torch.no_grad()
def probabilities_of(model: PreTrainedModel, pair: dict[str, Any]) -> dict[str, float]:
    """Of one pair by itself, by the names of the labels."""
    ids = tokenizer()(pair["premise"])["input_ids"] + tokenizer()(pair["hypothesis"])["input_ids"]
    logits = model(input_ids=torch.tensor([ids])).logits[0].double().numpy()
    shares = np.exp(logits) / np.exp(logits).sum()
    return {model.config.id2label[number]: float(share) for number, share in enumerate(shares)}


# ---------------------------------------------------------------------------------------- the loss


@pytest.mark.parametrize(("processes", "steps"), [(1, 1), (2, 1), (1, 3), (2, 3), (3, 4)])
def test_the_loss_of_an_update_is_the_mean_over_labelled_pairs(
    case: Case, model: PreTrainedModel, processes: int, steps: int
) -> None:
    pairs = some_pairs(9, unlabelled=2)
    encoded, _ = encode_inference(pairs, tokenizer(), model.config, for_training=False)
    labels = [LABELS[label] for label in pairs["label"][2:]]
    assert len(set(labels)) >= 2
    by_hand = [
        -np.log(probabilities_of(model, pair)[label])
        for pair, label in zip(pairs.select(range(2, 9)), labels, strict=True)
    ]
    total = 0.0
    losses = []
    for process in range(processes):
        update = Share(case.task, steps, process, processes).take(list(encoded), (1, 0, 0))
        assert update.items == 7
        for piece in update.pieces:
            losses.append(model(**piece, num_items_in_batch=update.items).loss.item())
            total += losses[-1]
    assert total == pytest.approx(np.mean(by_hand), abs=1e-5)
    assert losses.count(0.0) >= max(0, processes * steps - len(pairs))


@pytest.mark.parametrize("pooling", ["mean", "max", "decoder"])
def test_an_idle_pair_gives_no_loss_and_no_gradient(case: Case, pooling: str) -> None:
    model = tiny_tasks.maker(
        VanillaTransformerForSequenceClassification, num_labels=3, pooling=pooling
    )(0.1).train()
    idle = case.task.idle(case.examples[0])
    assert case.task.count([idle]) == 0
    loss = model(**case.task.collate([idle]), num_items_in_batch=17).loss
    loss.backward()
    assert loss.item() == 0.0
    for name, parameter in model.named_parameters():
        # One without a gradient would let DistributedDataParallel wait for ever.
        assert parameter.grad is not None, name
        assert torch.equal(parameter.grad, torch.zeros_like(parameter)), name


def test_a_task_goes_to_other_processes(case: Case) -> None:
    copy = pickle.loads(pickle.dumps(case.task))
    found, expected = (one.collate([case.examples[0]]) for one in (copy, case.task))
    assert set(found) == {"input_ids", "attention_mask", "labels"}
    assert all(torch.equal(found[name], expected[name]) for name in expected)


# -------------------------------------------------------------------------------------- validation


def macro_f1_by_hand(gold: list[str], predicted: list[str]) -> float:
    scores = []
    for label in {*gold, *predicted}:
        both = sum(one == other == label for one, other in zip(gold, predicted, strict=True))
        scores.append(2 * both / (gold.count(label) + predicted.count(label)))
    return 100 * sum(scores) / len(scores)


@pytest.mark.parametrize("examples", [11, None])
def test_validation_is_what_each_pair_by_itself_gives(
    model: PreTrainedModel, examples: int | None
) -> None:
    task = InferenceTask(tokenizer(), model.config, some_pairs(30, unlabelled=3))
    pairs = some_pairs(30).select(range(3, 3 + (examples or 27)))
    gold = [LABELS[label] for label in pairs["label"]]
    shares = [probabilities_of(model, pair) for pair in pairs]
    predicted = [max(one, key=one.__getitem__) for one in shares]
    assert len(set(predicted)) >= 2
    assert 0 < sum(map(str.__eq__, gold, predicted)) < len(gold)
    settings = dataclasses.replace(SETTINGS, validation_examples=examples, sample_predictions=4)
    model.train()
    found = task.validate(Accelerator(), model, settings)
    assert model.training
    model.eval()
    assert found.scores == {
        "loss": pytest.approx(
            -np.mean([np.log(one[label]) for one, label in zip(shares, gold, strict=True)]),
            abs=1e-5,
        ),
        "accuracy": pytest.approx(100 * np.mean(list(map(str.__eq__, gold, predicted)))),
        "macro_f1": pytest.approx(macro_f1_by_hand(gold, predicted)),
    }
    given = [f"{pair['premise']} | {pair['hypothesis']}" for pair in pairs]
    assert found.samples == tuple(zip(given, gold, predicted, strict=True))[:4]


def test_two_labels_are_scored_on_pairs_of_three() -> None:
    model = classifier(VanillaTransformerForSequenceClassification, **TWO_LABELS)
    task = InferenceTask(tokenizer(), model.config, some_pairs(30))
    task.prepare(model)
    found = task.validate(
        Accelerator(), model, dataclasses.replace(SETTINGS, validation_examples=None)
    )
    shares = [probabilities_of(model, pair) for pair in some_pairs(30)]
    right = [
        (one["entailment"] > 0.5) == (label == 0)
        for one, label in zip(shares, some_pairs(30)["label"], strict=True)
    ]
    assert 0 < sum(right) < 30
    assert found.scores["accuracy"] == pytest.approx(100 * np.mean(right))


def test_what_is_no_inference_is_refused(case: Case, model: PreTrainedModel) -> None:
    for problem in ("regression", "multi_label_classification"):
        options = {"id2label": dict(enumerate(LABELS)), "problem_type": problem}
        with pytest.raises(ValueError, match=f"problem_type \\('{problem}'\\) must be"):
            InferenceTask(tokenizer(), config(**options), some_pairs(5))
    with pytest.raises(ValueError, match="the model's labels are 'LABEL_0'"):
        InferenceTask(tokenizer(), config(num_labels=3), some_pairs(5))
    with pytest.raises(ValueError, match="has no label 'not_entailment'"):
        InferenceTask(tokenizer(), model.config, some_pairs(5, names=TWO_WAY_LABELS))
    for task in (
        lambda pairs: InferenceTask(tokenizer(), model.config, pairs),
        lambda pairs: LabelWritingTask(tokenizer(), pairs),
    ):
        with pytest.raises(ValueError, match="none of the 5 validation pairs has a label"):
            task(some_pairs(5, unlabelled=5))
    case.task.prepare(model)
    other = tiny_tasks.maker(type(model), id2label=dict(enumerate(LABELS)))()
    with pytest.raises(ValueError, match="the model's labels are entailment, neutral, contra"):
        case.task.prepare(other)


# ------------------------------------------------------------------------------------- predictions


def test_probabilities_are_in_the_order_of_the_labels(model: PreTrainedModel) -> None:
    pairs = some_pairs(12, unlabelled=12)
    model.train()
    found = classify_pairs(Accelerator(), model, tokenizer(), pairs)
    assert model.training
    model.eval()
    expected = [[probabilities_of(model, pair)[label] for label in LABELS] for pair in pairs]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    # The longer sides are cut to a budget.
    short = classify_pairs(Accelerator(), model, tokenizer(), pairs, max_length=8)
    assert short.shape == (12, 3)
    assert not np.allclose(short, found)


@pytest.mark.parametrize("processes", [2, 3])
def test_pairs_are_shared_out_and_give_the_same_bits(
    model: PreTrainedModel, processes: int
) -> None:
    encoded, _ = encode_inference(some_pairs(30), tokenizer(), model.config, for_training=False)
    expected = predict_logits(model, encoded, tokenizer(), batch_size=4)
    shares = [
        predict_logits(
            model,
            encoded,
            tokenizer(),
            batch_size=4,
            process_index=process,
            num_processes=processes,
        )
        for process in range(processes)
    ]
    computed = [(share != 0).any(axis=1) for share in shares]
    assert (np.sum(computed, axis=0) == 1).all()
    assert min(one.sum() for one in computed) >= 8
    np.testing.assert_array_equal(np.sum(shares, axis=0), expected)


def test_each_process_computes_its_own_share(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []

    def watch(*arguments: Any, process_index: int, num_processes: int) -> np.ndarray:
        asked.append((process_index, num_processes))
        return np.ones((5, 3), dtype=np.float32)

    monkeypatch.setattr(module, "predict_logits", watch)
    accelerator: Any = SimpleNamespace(
        process_index=1,
        num_processes=3,
        device="cpu",
        autocast=contextlib.nullcontext,
        reduce=lambda tensor, how: {"sum": tensor}[how],
    )
    found = classify_pairs(accelerator, model, tokenizer(), some_pairs(5))
    assert asked == [(1, 3)]
    np.testing.assert_allclose(found, 1 / 3)


# ------------------------------------------------------------------------------------ whole runs


def losses(run_dir: Path) -> list[float]:
    return [row["loss"] for row in read_log(run_dir) if row["kind"] == "train"]


def test_both_drivers_train_the_same_and_a_broken_run_goes_on(case: Case, tmp_path: Path) -> None:
    for name, driver in (("loop", train), ("trainer", train_with_trainer)):
        whole, broken = tmp_path / name, tmp_path / f"broken-{name}"
        result = case.train(whole, driver)
        assert set(result.validation) == {"loss", "accuracy", "macro_f1"}
        model = case.model(0.1)
        tiny_tasks.break_at(model, 6)
        with pytest.raises(tiny_tasks.ToldToFailError):
            case.train(broken, driver, model=model)
        case.train(broken, driver, model=tiny_tasks.forget(case.model(0.1)), resume=True)
        assert_same_run(broken, whole)
    assert_same_run(tmp_path / "trainer", tmp_path / "loop")
    assert len(losses(tmp_path / "loop")) == SETTINGS.updates


def test_a_run_learns(tmp_path: Path) -> None:
    """That a certain word in the hypothesis contradicts, and its absence entails."""
    given = tiny_tasks.pairs()
    hypotheses = [set(hypothesis.split()) for hypothesis in given["hypothesis"]]
    counts = Counter(chain(*hypotheses))
    word = min(sorted(counts), key=lambda word: abs(counts[word] - len(given) / 3))
    rows = [
        {**row, "label": 2 if word in words else 0}
        for row, words in zip(given, hypotheses, strict=True)
    ]
    pairs = Dataset.from_list(rows, features=given.features)
    names = {"id2label": dict(enumerate(MODEL_LABELS))}
    examples, _ = encode_inference(pairs, tokenizer(), config(**names), for_training=True)
    task = InferenceTask(tokenizer(), config(**names), pairs)
    case = Case(
        task,
        examples,
        tiny_tasks.maker(VanillaTransformerForSequenceClassification, pooling="max", **names),
        lambda accelerator, model: None,
    )
    result = case.train(
        tmp_path / "run",
        dropout=0.0,
        updates=60,
        validate_every=60,
        checkpoint_every=30,
        average_last=1,
        validation_examples=None,
    )
    rare = 100 * np.mean([row["label"] == 2 for row in rows])
    assert 20 < rare < 50
    assert result.validation["accuracy"] > 100 - rare / 2
    assert result.validation["macro_f1"] > 80


def test_pieces_change_nothing(case: Case, tmp_path: Path) -> None:
    options = {"dropout": 0.0, "updates": 5}
    case.train(tmp_path / "one", **options)
    case.train(tmp_path / "three", accumulation_steps=3, **options)
    assert losses(tmp_path / "three") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_train_and_classify_as_one(tmp_path: Path) -> None:
    tiny_tasks.compare_processes(tmp_path, "classes", "labels")


# -------------------------------------------------------------------------------- labels as text


def test_a_written_label_that_is_none_is_wrong() -> None:
    task = LabelWritingTask(tokenizer(), some_pairs(7, unlabelled=3), decoding=DECODING)
    assert task.metrics == ("accuracy", "perplexity")
    gold = [LABELS[label] for label in some_pairs(7)["label"][3:]]
    assert task.validation["target"] == gold
    assert task.score(gold, task.validation) == {"accuracy": 100.0}
    written = [f" {gold[0].title()}. ", "I do not know", "", gold[3]]
    assert task.score(written, task.validation) == {"accuracy": 50.0}
    assert task.score(written[:2], task.validation.select(range(2))) == {"accuracy": 50.0}


def test_written_labels_are_positions_among_the_names(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["Contradiction", "entailment", "?", "neutral."]
    calls: list[Any] = []

    def write(
        accelerator: Any, model: Any, tokenizer: Any, sources: Any, *rest: Any, **limits: Any
    ):
        calls.append((sources, limits))
        return [[SimpleNamespace(text=text)] for text in texts]

    monkeypatch.setattr(module, "translate_texts", write)
    pairs = some_pairs(4, unlabelled=2)
    arguments = (Accelerator(), None, tokenizer(), pairs, DECODING)
    found = write_labels(*arguments, max_batch_tokens=99)
    assert found.tolist() == [2, 0, -1, 1]
    sources, limits = calls[0]
    assert sources[0] == f"hypothesis: {pairs[0]['hypothesis']} premise: {pairs[0]['premise']}"
    assert limits == {"max_batch_tokens": 99}
    two = some_pairs(4, names=TWO_WAY_LABELS)
    found = write_labels(Accelerator(), None, tokenizer(), two, DECODING)
    assert found.tolist() == [1, 0, -1, 1]


def test_runs_that_write_labels_are_the_same_with_both_drivers(tmp_path: Path) -> None:
    case = tiny_tasks.labels()
    options = {"updates": 4, "validate_every": 3, "validation_examples": 4}
    result = case.train(tmp_path / "loop", **options)
    case.train(tmp_path / "trainer", train_with_trainer, **options)
    assert_same_run(tmp_path / "trainer", tmp_path / "loop")
    assert set(result.validation) == {"loss", "perplexity", "accuracy"}
