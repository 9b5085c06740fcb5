"""Question answering as a run learns it, compared with what is computed window by window."""

import contextlib
import dataclasses
import pickle
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from transformers import PreTrainedModel

from tests.training import tiny_tasks
from tests.training.tiny_run import assert_same_run, read_log
from tests.training.tiny_tasks import DECODING, SETTINGS, WINDOWS, Case, tokenizer
from vanilla_transformer.evaluation.question_answering import score_answer
from vanilla_transformer.tasks.question_answering import (
    WindowSpans,
    encode_questions,
    predict_spans,
)
from vanilla_transformer.training import question_answering as module
from vanilla_transformer.training.loop import train
from vanilla_transformer.training.question_answering import (
    AnswerWritingTask,
    QuestionAnsweringTask,
    answer_questions,
    write_answers,
)
from vanilla_transformer.training.trainer import train_with_trainer
from vanilla_transformer.training.updates import Share


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture(scope="module", params=[False, True], ids=["always", "or-none"])
def has_no_answer(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(scope="module")
def case(has_no_answer: bool) -> Case:
    return tiny_tasks.spans(has_no_answer=has_no_answer)


def answering_model(case: Case) -> PreTrainedModel:
    """Random, and as likely as not to leave a question unanswered where it can."""
    model = case.model(0.5).eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        if model.config.has_no_answer:
            # An even number: the middle lies between two of them.
            questions = case.task.questions.select(range(4))
            found = answer_questions(Accelerator(), model, tokenizer(), questions, **WINDOWS)
            middle = float(np.median([one.no_answer_score for one in found]))
            model.no_answer_outputs.bias -= middle / 2
    return model


@torch.no_grad()
def logits_of(model: PreTrainedModel, window: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Of one window by itself, without padding."""
    output = model(input_ids=torch.tensor([window["input_ids"]]))
    return output.start_logits[0].double().numpy(), output.end_logits[0].double().numpy()


def loss_by_hand(model: PreTrainedModel, window: dict[str, Any]) -> float:
    """Mean of both cross-entropies of one window; 0 where one of its labels is left out."""
    labels = (window["start_positions"], window["end_positions"])
    if -100 in labels:
        return 0.0
    both = zip(logits_of(model, window), labels, strict=True)
    return float(sum(np.log(np.exp(row).sum()) - row[label] for row, label in both) / 2)


def example_windows(case: Case, has_no_answer: bool) -> list[dict[str, Any]]:
    """Seven windows, one of which teaches nothing."""
    questions = case.task.questions.select(range(4))
    options = {"has_no_answer": has_no_answer, **WINDOWS}
    encoded, _ = encode_questions(questions, tokenizer(), for_training=False, **options)
    windows = [{name: row[name] for name in case.task.columns} for row in encoded.select(range(7))]
    windows[2] = {**windows[2], "end_positions": -100}
    return windows


# ---------------------------------------------------------------------------------------- the loss


@pytest.mark.parametrize(("processes", "steps"), [(1, 1), (2, 1), (1, 3), (2, 3), (3, 4)])
def test_the_loss_of_an_update_is_the_mean_over_windows_that_teach(
    case: Case, has_no_answer: bool, processes: int, steps: int
) -> None:
    model, windows = answering_model(case), example_windows(case, has_no_answer)
    taught = [one for one in windows if -100 not in (one["start_positions"], one["end_positions"])]
    assert 0 < len(taught) < len(windows)
    assert has_no_answer == any(window["start_positions"] == 0 for window in taught)
    expected = sum(loss_by_hand(model, window) for window in taught) / len(taught)
    total, losses = 0.0, []
    for process in range(processes):
        update = Share(case.task, steps, process, processes).take(windows, (1, 0, 0))
        assert update.items == len(taught)
        for piece in update.pieces:
            loss = model(**piece, num_items_in_batch=update.items).loss
            losses.append(loss.item())
            total += losses[-1]
    assert total == pytest.approx(expected, abs=1e-5)
    # Twelve parts for seven windows: those that are left over teach nothing.
    assert losses.count(0.0) >= max(0, processes * steps - len(windows))


def test_an_idle_window_gives_no_loss_and_no_gradient(case: Case) -> None:
    model = case.model(0.1).train()
    idle = case.task.idle({name: case.examples[0][name] for name in case.task.columns})
    assert case.task.count([idle]) == 0
    loss = model(**case.task.collate([idle]), num_items_in_batch=17).loss
    loss.backward()
    assert loss.item() == 0.0
    for name, parameter in model.named_parameters():
        # One without a gradient would let DistributedDataParallel wait for ever.
        assert parameter.grad is not None, name
        assert torch.equal(parameter.grad, torch.zeros_like(parameter)), name


def test_training_windows_without_answer_are_dropped_or_point_at_none(
    case: Case, has_no_answer: bool
) -> None:
    starts = np.asarray(case.examples["start_positions"])
    assert case.task.count(list(case.examples)) == len(case.examples)
    if has_no_answer:
        assert 0 < (starts == 0).sum() < len(starts)
    else:
        assert (starts > 0).all()


def test_collated_windows_are_padded_to_the_longest(case: Case) -> None:
    windows = sorted(
        ({name: row[name] for name in case.task.columns} for row in case.examples),
        key=lambda row: len(row["input_ids"]),
    )
    shortest, longest = (len(windows[row]["input_ids"]) for row in (0, -1))
    assert shortest < longest
    piece = case.task.collate([windows[0], windows[-1]])
    assert set(piece) == {"input_ids", "attention_mask", "start_positions", "end_positions"}
    assert piece["input_ids"].shape == (2, longest)
    assert case.task.padding(piece) == (shortest + longest, 2 * longest)


def test_task_and_model_must_agree_on_no_answer(case: Case, has_no_answer: bool) -> None:
    case.task.prepare(case.model())
    other = tiny_tasks.maker(type(case.model()), has_no_answer=not has_no_answer)()
    with pytest.raises(ValueError, match=f"has_no_answer is {has_no_answer} in the task and"):
        case.task.prepare(other)


def test_a_task_goes_to_other_processes(case: Case) -> None:
    copy = pickle.loads(pickle.dumps(case.task))
    window = {name: case.examples[0][name] for name in case.task.columns}
    assert torch.equal(
        copy.collate([window])["input_ids"], case.task.collate([window])["input_ids"]
    )


def test_questions_that_teach_nothing_are_refused() -> None:
    nothing = tiny_tasks.unanswerable(tiny_tasks.questions("validation", 14), every=1)
    with pytest.raises(ValueError, match="none of the 14 validation questions has an answer"):
        QuestionAnsweringTask(tokenizer(), nothing, **WINDOWS)
    QuestionAnsweringTask(tokenizer(), nothing, has_no_answer=True, **WINDOWS)


# -------------------------------------------------------------------------------------- validation


@pytest.mark.parametrize("examples", [5, None])
def test_validation_is_what_each_window_by_itself_gives(
    case: Case, has_no_answer: bool, examples: int | None
) -> None:
    model = answering_model(case)
    questions = case.task.questions.select(range(examples or 14))
    options = {"has_no_answer": has_no_answer, **WINDOWS}
    taught, _ = encode_questions(questions, tokenizer(), for_training=True, **options)
    expected_loss = np.mean([loss_by_hand(model, window) for window in taught])
    windows, _ = encode_questions(questions, tokenizer(), for_training=False, **options)
    assert len(windows) > len(questions)
    starts, ends = zip(*(logits_of(model, window) for window in windows), strict=True)
    threshold = 0.0 if has_no_answer else None
    predicted = predict_spans(questions, windows, starts, ends, no_answer_threshold=threshold)
    unanswered = sum(one.text == "" for one in predicted)
    assert 0 < unanswered < len(predicted) if has_no_answer else unanswered == 0
    version = "2.0" if has_no_answer else "1.1"
    by_hand = [
        score_answer(one.text, question["answers"]["text"], version)
        for one, question in zip(predicted, questions, strict=True)
    ]
    settings = dataclasses.replace(SETTINGS, validation_examples=examples, sample_predictions=3)
    found = case.task.validate(Accelerator(), model.train(), settings)
    assert model.training
    assert list(found.scores) == ["loss", "f1", "exact_match"]
    assert found.scores["loss"] == pytest.approx(expected_loss, abs=1e-5)
    for name in ("f1", "exact_match"):
        mean = 100 * np.mean([scores[name] for scores in by_hand])
        assert found.scores[name] == pytest.approx(mean)
    assert [sample[2] for sample in found.samples] == [one.text for one in predicted[:3]]
    for (given, expected, _), question in zip(found.samples, questions, strict=False):
        assert given.startswith(question["question"] + " | ")
        assert expected == " / ".join(question["answers"]["text"])
        assert all(text in given for text in question["answers"]["text"])


def test_a_sample_shows_the_context_around_the_answer() -> None:
    context = " ".join(f"word{number}" for number in range(100))
    start = context.index("word50")
    answers = {"text": ["word50", "50"], "answer_start": [start, -1]}
    question = {"question": "Which?", "context": context, "answers": answers}
    given, expected, _ = module._sample(question, "word1")
    assert given.startswith("Which? | ... ")
    assert given.endswith(" ...")
    assert "word48 word49 word50 word51 word52" in given
    assert len(given) < 160
    assert expected == "word50 / 50"


# ------------------------------------------------------------------------------------- predictions


def test_answers_come_from_all_windows_and_not_from_the_gold_ones(
    case: Case, has_no_answer: bool
) -> None:
    model = answering_model(case).train()
    questions = tiny_tasks.questions("validation", 14)
    hidden = tiny_tasks.unanswerable(questions, every=1)
    found = answer_questions(Accelerator(), model, tokenizer(), questions, **WINDOWS)
    assert model.training
    assert answer_questions(Accelerator(), model, tokenizer(), hidden, **WINDOWS) == found
    model.eval()
    windows, report = encode_questions(questions, tokenizer(), for_training=False, **WINDOWS)
    assert report.long_contexts > 5
    starts, ends = zip(*(logits_of(model, window) for window in windows), strict=True)
    expected = predict_spans(questions, windows, starts, ends)
    assert [one.text for one in found] == [one.text for one in expected]
    assert [one.id for one in found] == questions["id"]
    for one, other in zip(found, expected, strict=True):
        assert one.n_best[0].score == pytest.approx(other.n_best[0].score, abs=1e-4)
        assert (one.no_answer_score is not None) == has_no_answer
    short = answer_questions(
        Accelerator(), model, tokenizer(), questions, n_best=2, max_answer_length=1, **WINDOWS
    )
    assert {len(one.n_best) for one in short} == {2}
    lengths = [sum(len(one.text) for one in several) for several in (short, found)]
    assert lengths[0] < lengths[1] / 2


def test_a_threshold_leaves_questions_unanswered(case: Case, has_no_answer: bool) -> None:
    model, questions = answering_model(case), tiny_tasks.questions("validation", 14)
    options = {**WINDOWS, "no_answer_threshold": 0.0}
    if not has_no_answer:
        with pytest.raises(ValueError, match="no no-answer score"):
            answer_questions(Accelerator(), model, tokenizer(), questions, **options)
        return
    found = answer_questions(Accelerator(), model, tokenizer(), questions, **options)
    for one in found:
        assert one.no_answer_score is not None
        assert (one.text == "") == (one.no_answer_score > 0)
    assert 0 < sum(one.text == "" for one in found) < len(found)


@pytest.mark.parametrize("processes", [2, 3])
def test_windows_are_shared_out_and_give_the_same_bits(
    case: Case, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    """Each process computes some batches, and all of them together what one alone computes."""
    monkeypatch.setattr(module, "_BATCH_TOKENS", 150)
    model, questions = answering_model(case), tiny_tasks.questions("validation", 14)
    expected = answer_questions(Accelerator(), model, tokenizer(), questions, **WINDOWS)
    shares: list[list[WindowSpans]] = []

    def keep(found: list[WindowSpans]) -> list[WindowSpans]:
        shares.append(found)
        raise ConnectionError

    monkeypatch.setattr(module, "gather_object", keep)
    for process in range(processes):
        accelerator: Any = SimpleNamespace(
            process_index=process, num_processes=processes, autocast=contextlib.nullcontext
        )
        with pytest.raises(ConnectionError):
            answer_questions(accelerator, model, tokenizer(), questions, **WINDOWS)
    assert all(shares)
    together = [window for share in shares for window in share]
    windows, _ = encode_questions(questions, tokenizer(), for_training=False, **WINDOWS)
    assert sorted(one.example_id for one in together) == sorted(windows["example_id"])
    monkeypatch.setattr(module, "gather_object", lambda found: together)
    assert answer_questions(Accelerator(), model, tokenizer(), questions, **WINDOWS) == expected


# ------------------------------------------------------------------------------------ whole runs


def losses(run_dir: Path) -> list[float]:
    return [row["loss"] for row in read_log(run_dir) if row["kind"] == "train"]


def test_both_drivers_train_the_same_and_a_broken_run_goes_on(case: Case, tmp_path: Path) -> None:
    for name, driver in (("loop", train), ("trainer", train_with_trainer)):
        whole, broken = tmp_path / name, tmp_path / f"broken-{name}"
        result = case.train(whole, driver)
        assert set(result.validation) == {"loss", "f1", "exact_match"}
        model = case.model(0.1)
        tiny_tasks.break_at(model, 6)
        with pytest.raises(tiny_tasks.ToldToFailError):
            case.train(broken, driver, model=model)
        case.train(broken, driver, model=tiny_tasks.forget(case.model(0.1)), resume=True)
        assert_same_run(broken, whole)
    assert_same_run(tmp_path / "trainer", tmp_path / "loop")
    found = losses(tmp_path / "loop")
    assert len(found) == SETTINGS.updates
    assert np.mean(found[-2:]) < found[0] - 0.3


def test_pieces_change_nothing(case: Case, tmp_path: Path) -> None:
    options = {"dropout": 0.0, "updates": 5}
    case.train(tmp_path / "one", **options)
    case.train(tmp_path / "three", accumulation_steps=3, **options)
    assert losses(tmp_path / "three") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_train_and_answer_as_one(tmp_path: Path) -> None:
    tiny_tasks.compare_processes(tmp_path, "spans", "spans-or-none", "answers")


# ------------------------------------------------------------------------------- answers as text


def several_answers() -> Dataset:
    """Three questions, of which one has two answers and another one none."""
    questions = tiny_tasks.questions("validation", 3)
    given = [["the red house", "a house"], ["the dog"], []]
    rows = [
        {**row, "answers": {"text": texts, "answer_start": [-1] * len(texts)}}
        for row, texts in zip(questions, given, strict=True)
    ]
    return Dataset.from_list(rows, features=questions.features)


def test_written_answers_are_scored_by_the_best_gold_answer() -> None:
    task = AnswerWritingTask(tokenizer(), several_answers(), decoding=DECODING)
    assert task.metrics == ("f1", "exact_match", "perplexity")
    assert task.validation["target"] == ["the red house", "the dog", ""]
    scores = task.score(["House.", "the big dog", ""], task.validation)
    # A whole match with the second answer; one word of two and one of one; rightly none.
    assert scores == {"f1": pytest.approx(100 * (1 + 2 / 3 + 1) / 3), "exact_match": 200 / 3}
    first = task.score(["house"], task.validation.select([0]))
    assert first == {"f1": 100.0, "exact_match": 100.0}


def test_written_answers_come_by_id(monkeypatch: pytest.MonkeyPatch) -> None:
    case, questions = tiny_tasks.answers(), several_answers()
    model = case.model().eval()
    found = write_answers(Accelerator(), model, tokenizer(), questions, DECODING)
    assert list(found) == questions["id"]
    seen: list[str] = []

    def echo(accelerator: Any, model: Any, tokenizer: Any, sources: Any, *rest: Any, **limits: Any):
        seen.extend(sources)
        assert limits == {"max_source_tokens": 9}
        return [[SimpleNamespace(text=source[-5:])] for source in sources]

    monkeypatch.setattr(module, "translate_texts", echo)
    found = write_answers(
        Accelerator(),
        model,
        tokenizer(),
        questions,
        DECODING,
        with_context=False,
        max_source_tokens=9,
    )
    assert seen == [f"question: {question}" for question in questions["question"]]
    assert found == dict(
        zip(questions["id"], [text[-5:] for text in questions["question"]], strict=True)
    )


def test_runs_that_write_answers_are_the_same_with_both_drivers(tmp_path: Path) -> None:
    case = tiny_tasks.answers()
    options = {"updates": 4, "validate_every": 3, "validation_examples": 4}
    result = case.train(tmp_path / "loop", **options)
    case.train(tmp_path / "trainer", train_with_trainer, **options)
    assert_same_run(tmp_path / "trainer", tmp_path / "loop")
    assert set(result.validation) == {"loss", "perplexity", "f1", "exact_match"}
