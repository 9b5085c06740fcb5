"""Questions to windows, logits to the context's own text, and the official files."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from vanilla_transformer import VanillaTransformerConfig, VanillaTransformerForQuestionAnswering
from vanilla_transformer.data.question_answering_corpora import load_question_answering
from vanilla_transformer.tasks.question_answering import (
    SpanPrediction,
    WindowsReport,
    encode_questions,
    generative_pairs,
    predict_spans,
    question_answering_collator,
    with_threshold,
    write_n_best,
    write_no_answer_probabilities,
    write_predictions,
)
from vanilla_transformer.tasks.translation import encode_pairs
from vanilla_transformer.tokenization import train_tokenizer

NUMBERS = " ".join(
    f"{tens} {ones}"
    for tens in ("twenty", "thirty", "forty")
    for ones in ("one", "two", "three", "four", "five", "six")
)


def question(
    question_id: str, context: str, *answers: str, text: str = "who was it?", offsets: Any = None
) -> dict[str, Any]:
    starts = offsets or [context.index(answer) for answer in answers]
    return {
        "id": question_id,
        "title": "",
        "context": context,
        "question": text,
        "answers": {"text": list(answers), "answer_start": starts},
    }


# Letters of several bytes, blanks of all kinds, an end of sentence that is text.
HARD = " \u00a0Zoë  met\n\nÉmile 👩‍👩‍👧 (in Łódź)</s>, 1990s.\u200b Tēvs\u3000東京で. "
ROWS = [
    question("plain", "The prince finds a horse.", "The prince", "prince"),
    question("hard", HARD, "Émile 👩‍👩‍👧"),
    question("long", NUMBERS, "thirty four"),
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer([row["context"] for row in ROWS] * 3 + ["who was it? (1990s)"], 420)


def perfect_logits(windows: Dataset, strength: float = 20.0) -> tuple[np.ndarray, np.ndarray]:
    """What a model would say that knows the labels."""
    width = max(map(len, windows["input_ids"]))
    logits = np.random.default_rng(0).normal(scale=0.1, size=(2, len(windows), width))
    for row, (start, end) in enumerate(
        zip(windows["start_positions"], windows["end_positions"], strict=True)
    ):
        if start >= 0:
            logits[0, row, start] += strength
            logits[1, row, end] += strength
    return logits[0], logits[1]


# Windows


def test_a_window_is_question_then_context(tokenizer: PreTrainedTokenizerBase) -> None:
    windows, report = encode_questions(Dataset.from_list(ROWS[:1]), tokenizer, for_training=True)
    assert windows.column_names == [
        "input_ids",
        "attention_mask",
        "start_positions",
        "end_positions",
    ]
    assert (
        windows[0]["input_ids"] == tokenizer(ROWS[0]["question"], ROWS[0]["context"])["input_ids"]
    )
    assert report == WindowsReport(questions=1, windows=1)
    start, end = windows[0]["start_positions"], windows[0]["end_positions"]
    labelled = windows[0]["input_ids"][start : end + 1]
    assert tokenizer.decode(labelled).strip() == "The prince"


def test_windows_overlap_by_the_stride_and_miss_nothing(tokenizer: PreTrainedTokenizerBase) -> None:
    budget = {"max_length": 30, "stride": 7, "max_question_length": 16}
    windows, report = encode_questions(
        Dataset.from_list(ROWS[2:]), tokenizer, for_training=False, **budget
    )
    assert report.windows == len(windows) > 2
    assert report.long_contexts == 1
    covered = []
    for row in windows:
        assert len(row["input_ids"]) <= 30
        assert row["example_id"] == "long"
        covered.append([one for one in row["context_starts"] if one >= 0])
        ends = [end for end in row["context_ends"] if end >= 0]
        text = NUMBERS[covered[-1][0] : ends[-1]]
        assert text in tokenizer.decode(row["input_ids"])
    for before, after in itertools.pairwise(covered):
        assert before[-6:] == after[1:7]
    whole = tokenizer(NUMBERS, add_special_tokens=False)["input_ids"]
    assert sum(map(len, covered)) - 7 * (len(covered) - 1) == len(whole)


def test_only_windows_with_the_whole_answer_are_labelled(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    budget = {"max_length": 30, "stride": 7, "max_question_length": 16}
    dataset = Dataset.from_list(ROWS[2:])
    all_of_it, _ = encode_questions(dataset, tokenizer, for_training=False, **budget)
    start = NUMBERS.index("thirty four")
    holding = []
    for number, row in enumerate(all_of_it):
        first = min(one for one in row["context_starts"] if one >= 0)
        if first <= start and start + len("thirty four") <= max(row["context_ends"]):
            holding.append(number)
            label = (row["start_positions"], row["end_positions"])
            assert row["context_starts"][label[0]] == start
            assert row["context_ends"][label[1]] == start + len("thirty four")
        else:
            # Nothing for the loss to learn where the model cannot say "none".
            assert row["start_positions"] == row["end_positions"] == -100
    assert 0 < len(holding) < len(all_of_it) - 1

    training, report = encode_questions(dataset, tokenizer, for_training=True, **budget)
    assert training["input_ids"] == [all_of_it[number]["input_ids"] for number in holding]
    assert report.windows == len(holding)
    assert report.windows_without_answer == len(all_of_it) - len(holding)
    assert report.questions_without_answer == 0

    for for_training in (True, False):
        windows, report = encode_questions(
            dataset, tokenizer, for_training=for_training, has_no_answer=True, **budget
        )
        labelled = [n for n, row in enumerate(windows) if row["start_positions"] > 0]
        assert (len(windows), labelled) == (len(all_of_it), holding)
        assert set(windows["end_positions"]) - {all_of_it[holding[0]]["end_positions"]} >= {0}
        assert min(windows["end_positions"]) == 0
        assert report.windows_without_answer == len(all_of_it) - len(holding)


def test_the_first_answer_that_the_window_holds_is_the_label(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    row = question("x", NUMBERS, "forty six", "twenty two", "nowhere", offsets=[0, 0, -1])
    for number, answer in enumerate(row["answers"]["text"][:2]):
        row["answers"]["answer_start"][number] = NUMBERS.index(answer)
    windows, _ = encode_questions(
        Dataset.from_list([row]),
        tokenizer,
        for_training=True,
        max_length=30,
        stride=7,
        max_question_length=16,
    )
    answers = [
        tokenizer.decode(one["input_ids"][one["start_positions"] : one["end_positions"] + 1])
        for one in windows
    ]
    assert {text.strip() for text in answers} == {"twenty two", "forty six"}
    whole, _ = encode_questions(Dataset.from_list([row]), tokenizer, for_training=True)
    start, end = whole[0]["start_positions"], whole[0]["end_positions"]
    assert tokenizer.decode(whole[0]["input_ids"][start : end + 1]).strip() == "forty six"


def test_answer_longer_than_any_window_is_counted(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [question("x", NUMBERS, NUMBERS[3:-3]), ROWS[0]]
    windows, report = encode_questions(
        Dataset.from_list(rows),
        tokenizer,
        for_training=True,
        max_length=32,
        stride=7,
        max_question_length=16,
    )
    assert (report.questions, report.questions_without_answer, len(windows)) == (2, 1, 1)


def test_label_of_an_answer_inside_a_token_is_the_token_and_is_counted() -> None:
    context = "the princes dance " * 4
    tokenizer = train_tokenizer([context] * 9, 400)
    rows = [question("x", context, "prince"), question("y", context, "dance")]
    windows, report = encode_questions(Dataset.from_list(rows), tokenizer, for_training=True)
    start, end = windows[0]["start_positions"], windows[0]["end_positions"]
    assert tokenizer.decode(windows[0]["input_ids"][start : end + 1]) == " princes"
    assert report.inexact_labels == 1


def test_label_is_exact_wherever_in_a_window_the_answer_lies(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    # Byte-level BPE counts the blank before a word to it at the beginning of a later window.
    words = NUMBERS.split()
    pairs = [" ".join(words[number : number + 2]) for number in range(0, len(words), 2)]
    rows = [question(pair, NUMBERS, pair) for pair in pairs]
    windows, report = encode_questions(
        Dataset.from_list(rows),
        tokenizer,
        for_training=True,
        max_length=30,
        stride=7,
        max_question_length=16,
    )
    firsts = [
        row["input_ids"].index(tokenizer.eos_token_id) + 1 == row["start_positions"]
        for row in windows
    ]
    assert any(firsts)
    assert report.inexact_labels == 0


def test_long_question_is_cut_and_counted(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [{**ROWS[0], "question": NUMBERS * 3}, {**ROWS[0], "id": "other"}]
    windows, report = encode_questions(
        Dataset.from_list(rows), tokenizer, for_training=True, max_question_length=12
    )
    kept = tokenizer(NUMBERS, add_special_tokens=False)["input_ids"][:12]
    assert windows[0]["input_ids"][: len(kept) + 1] == [*kept, tokenizer.eos_token_id]
    assert (report.cut_questions, report.windows) == (1, 2)


def test_the_tokenizer_is_left_as_it_was(tokenizer: PreTrainedTokenizerBase) -> None:
    before = tokenizer.backend_tokenizer.to_str()
    encode_questions(Dataset.from_list(ROWS), tokenizer, for_training=True, stride=7)
    assert tokenizer.backend_tokenizer.to_str() == before


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        (ROWS[0], {"max_length": 66}, "leaves 0 tokens of context"),
        (ROWS[0], {"max_length": 194, "stride": 128}, r"more than the stride \(128\)"),
        (ROWS[0], {"stride": -1}, "must not be negative"),
        (ROWS[0], {"max_question_length": 0}, "max_question_length"),
        (question("open", "", "x", offsets=[-1]), {}, "'open' has no context .* generative_pairs"),
        (question("none", "some text"), {}, "'none' has no answer; .* has_no_answer=True"),
    ],
)
def test_what_cannot_be_encoded_is_refused(
    tokenizer: PreTrainedTokenizerBase, row: dict[str, Any], options: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        encode_questions(Dataset.from_list([row]), tokenizer, for_training=True, **options)


def test_collator_pads_and_leaves_out_what_is_not_for_the_model(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    windows, _ = encode_questions(Dataset.from_list(ROWS[:2]), tokenizer, for_training=False)
    batch = question_answering_collator(tokenizer, pad_to_multiple_of=8)(list(windows))
    assert set(batch) == {"input_ids", "attention_mask", "start_positions", "end_positions"}
    lengths = [len(ids) for ids in windows["input_ids"]]
    assert batch["input_ids"].shape[1] == -(-max(lengths) // 8) * 8
    assert batch["attention_mask"].sum(1).tolist() == lengths
    assert batch["input_ids"][0, lengths[0] :].unique().tolist() == [tokenizer.pad_token_id]
    assert batch["start_positions"].tolist() == windows["start_positions"]


# Predictions


@pytest.mark.parametrize("strength", [20.0, -20.0])
def test_prediction_is_the_original_text(
    tokenizer: PreTrainedTokenizerBase, strength: float
) -> None:
    rows = Dataset.from_list(ROWS)
    windows, _ = encode_questions(rows, tokenizer, for_training=False, max_length=100, stride=8)
    predictions = predict_spans(rows, windows, *perfect_logits(windows, strength))
    for row, prediction in zip(ROWS, predictions, strict=True):
        if strength > 0:
            assert prediction.text == row["answers"]["text"][0]
        assert prediction.text == prediction.n_best[0].text
        for candidate in prediction.n_best:
            assert row["context"][candidate.start : candidate.end] == candidate.text
            assert candidate.text == candidate.text.strip() != ""
        texts = [candidate.text for candidate in prediction.n_best]
        assert len(set(texts)) == len(texts) <= 20


def test_prediction_is_the_original_text_where_punctuation_is_ignored() -> None:
    rows = [
        *ROWS,
        question("inside", "He said: “The U.S.A., twenty-one (21) times!”", "U.S.A., twenty-one"),
        question("edges", "It costs “$5.20”, no more.", "“$5.20”", text="?!"),
        question("nothing", "... — !", "—"),
    ]
    learner = train_tokenizer([row["context"] for row in ROWS], 420, strip_punctuation=True)
    budget = {"max_length": 30, "stride": 7, "max_question_length": 8}
    dataset = Dataset.from_list(rows)
    windows, report = encode_questions(dataset, learner, for_training=False, **budget)
    predictions = predict_spans(dataset, windows, *perfect_logits(windows))
    texts = {one.id: one.text for one in predictions}
    for row in rows[:4]:
        assert texts[row["id"]] == row["answers"]["text"][0]
    # No token stands for what an answer has at its ends, and the metric leaves it out, too.
    assert (texts["edges"], texts["nothing"]) == ("5.20", "")
    assert (report.inexact_labels, report.questions_without_answer) == (1, 1)


@pytest.mark.parametrize("max_answer_length", [1, 4, 100])
def test_search_is_joint_and_over_all_windows(
    tokenizer: PreTrainedTokenizerBase, max_answer_length: int
) -> None:
    rows = Dataset.from_list(ROWS)
    windows, _ = encode_questions(
        rows, tokenizer, for_training=False, max_length=40, stride=8, max_question_length=16
    )
    width = max(map(len, windows["input_ids"]))
    logits = np.random.default_rng(1).normal(size=(2, len(windows), width)).astype(np.float32)
    best: dict[str, dict[str, float]] = {row["id"]: {} for row in ROWS}
    for number, window in enumerate(windows):
        context = next(row["context"] for row in ROWS if row["id"] == window["example_id"])
        spans = list(zip(window["context_starts"], window["context_ends"], strict=True))
        for first, last in itertools.combinations_with_replacement(range(len(spans)), 2):
            begin, end = spans[first][0], spans[last][1]
            is_token = spans[first][0] < spans[first][1] and spans[last][0] < spans[last][1]
            text = context[begin:end].strip() if is_token else ""
            if text and last - first < max_answer_length:
                score = float(logits[0, number, first]) + float(logits[1, number, last])
                found = best[window["example_id"]]
                found[text] = max(score, found.get(text, -math.inf))
    predictions = predict_spans(
        rows, windows, *logits, n_best=5, max_answer_length=max_answer_length
    )
    for prediction in predictions:
        expected = sorted(best[prediction.id].items(), key=lambda item: -item[1])
        assert len(prediction.n_best) > 1
        for candidate, (text, score) in zip(prediction.n_best, expected, strict=False):
            assert (candidate.text, candidate.score) == (text, pytest.approx(score))


def test_logits_come_as_tensors_or_as_rows_of_their_own_lengths(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    rows = Dataset.from_list(ROWS)
    windows, _ = encode_questions(rows, tokenizer, for_training=False)
    starts, ends = perfect_logits(windows)
    expected = predict_spans(rows, windows, starts, ends)
    lengths = [len(ids) for ids in windows["input_ids"]]
    cut = [[row[:n] for row, n in zip(side, lengths, strict=True)] for side in (starts, ends)]
    assert predict_spans(rows, windows, *cut) == expected
    half = [torch.tensor(side).bfloat16() for side in (starts, ends)]
    assert [one.text for one in predict_spans(rows, windows, *half)] == [
        one.text for one in expected
    ]


def no_answer_case(tokenizer: PreTrainedTokenizerBase, null: float) -> list[SpanPrediction]:
    """One window with the answer, the best span worth 7, and others that are sure of none."""
    rows = Dataset.from_list(ROWS[2:])
    windows, _ = encode_questions(
        rows,
        tokenizer,
        for_training=False,
        has_no_answer=True,
        max_length=30,
        stride=7,
        max_question_length=16,
    )
    width = max(map(len, windows["input_ids"]))
    starts, ends = np.full((2, len(windows), width), -50.0)
    starts[:, 0] = ends[:, 0] = 30.0
    number = next(n for n, start in enumerate(windows["start_positions"]) if start > 0)
    starts[number, windows[number]["start_positions"]] = 3.0
    ends[number, windows[number]["end_positions"]] = 4.0
    starts[number, 0], ends[number, 0] = null, 0.0
    return predict_spans(rows, windows, starts, ends, no_answer_threshold=1.0)


def test_no_answer_is_weighed_against_the_best_span(tokenizer: PreTrainedTokenizerBase) -> None:
    unsure = no_answer_case(tokenizer, 8.5)[0]
    assert (unsure.text, unsure.n_best[0].text) == ("", "thirty four")
    assert unsure.no_answer_score == pytest.approx(1.5)
    # The rest of the probability is that of "no answer".
    assert unsure.n_best[0].probability == pytest.approx(1 / (1 + math.exp(1.5)))
    sure = no_answer_case(tokenizer, 7.5)[0]
    assert (sure.text, sure.no_answer_score) == ("thirty four", pytest.approx(0.5))
    assert [one.text for one in with_threshold([sure, unsure], 0.4)] == ["", ""]
    assert [one.text for one in with_threshold([sure, unsure], 1.5)] == ["thirty four"] * 2


def test_without_a_no_answer_score_the_probabilities_are_those_of_the_spans(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    prediction = no_answer_case_masked(tokenizer)
    assert prediction.no_answer_score is None
    assert sum(one.probability for one in prediction.n_best) == pytest.approx(1)
    with pytest.raises(ValueError, match="'plain' has no no-answer score"):
        with_threshold([prediction], 0.0)


def no_answer_case_masked(tokenizer: PreTrainedTokenizerBase) -> SpanPrediction:
    """A prediction of a model that masks position 0, as those for SQuAD 1.1 do."""
    rows = Dataset.from_list(ROWS[:1])
    windows, _ = encode_questions(rows, tokenizer, for_training=False)
    starts, ends = perfect_logits(windows, 2.0)
    starts[:, 0] = ends[:, 0] = torch.finfo(torch.float32).min
    return predict_spans(rows, windows, starts, ends)[0]


def test_what_does_not_belong_together_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = Dataset.from_list(ROWS)
    windows, _ = encode_questions(rows, tokenizer, for_training=False)
    starts, ends = perfect_logits(windows)
    with pytest.raises(ValueError, match="3 windows do not go with 2 rows"):
        predict_spans(rows, windows, starts[:2], ends)
    with pytest.raises(ValueError, match="question 'new' has no window"):
        predict_spans([*ROWS, {**ROWS[0], "id": "new"}], windows, starts, ends)
    with pytest.raises(ValueError, match=r"1 questions have windows but are not .* 'long'"):
        predict_spans(ROWS[:2], windows, starts, ends)
    with pytest.raises(ValueError, match=r"window \d has \d+ tokens and 3 logits"):
        predict_spans(rows, windows, starts[:, :3], ends)
    with pytest.raises(ValueError, match=r"n_best \(0\)"):
        predict_spans(rows, windows, starts, ends, n_best=0)
    starts[1, 2] = math.nan
    with pytest.raises(ValueError, match="logits of window 1 are not numbers"):
        predict_spans(rows, windows, starts, ends)


def test_official_files(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    prediction = no_answer_case(tokenizer, 7.5)[0]
    write_predictions([prediction], tmp_path / "new" / "predictions.json")
    write_no_answer_probabilities([prediction], tmp_path / "na.json")
    write_n_best([prediction], tmp_path / "n_best.json")
    loaded = [
        json.loads((tmp_path / name).read_text(encoding="utf-8"))
        for name in ("new/predictions.json", "na.json", "n_best.json")
    ]
    assert loaded[0] == {"long": "thirty four"}
    assert loaded[1] == {"long": pytest.approx(1 / (1 + math.exp(-0.5)))}
    start = NUMBERS.index("thirty four")
    expected = {"text": "thirty four", "start": start, "end": start + 11, "score": 7.0}
    assert loaded[2]["long"][0].items() >= expected.items()
    # Far beyond what a power of e can be.
    for score, probability in ((-1e4, 0.0), (1e4, 1.0), (math.inf, 1.0)):
        extreme = SpanPrediction("x", "", (), score)
        write_no_answer_probabilities([extreme], tmp_path / "na.json")
        assert json.loads((tmp_path / "na.json").read_text()) == {"x": probability}
    with pytest.raises(ValueError, match="no no-answer score to write"):
        write_no_answer_probabilities([no_answer_case_masked(tokenizer)], tmp_path / "na.json")


@pytest.mark.parametrize("has_no_answer", [False, True])
def test_windows_go_with_the_head(tokenizer: PreTrainedTokenizerBase, has_no_answer: bool) -> None:
    config = VanillaTransformerConfig(
        vocab_size=len(tokenizer),
        d_model=16,
        d_ff=16,
        num_heads=2,
        num_encoder_layers=1,
        num_decoder_layers=1,
        has_no_answer=has_no_answer,
    )
    torch.manual_seed(0)
    model = VanillaTransformerForQuestionAnswering(config).eval()
    rows = Dataset.from_list(ROWS)
    budget = {"max_length": 60, "stride": 8, "max_question_length": 16}
    windows, _ = encode_questions(
        rows, tokenizer, for_training=False, has_no_answer=has_no_answer, **budget
    )
    with torch.no_grad():
        output = model(**question_answering_collator(tokenizer)(list(windows)))
    assert torch.isfinite(output.loss)
    # The head opens the positions that the windows call context, and no other.
    for row, window in enumerate(windows):
        is_open = (output.start_logits[row] > -1e4).tolist()
        is_context = [start >= 0 for start in window["context_starts"]]
        is_context[0] = has_no_answer
        assert is_open[: len(is_context)] == is_context
        assert not any(is_open[len(is_context) :])
    predictions = predict_spans(rows, windows, output.start_logits, output.end_logits)
    for row, prediction in zip(ROWS, predictions, strict=True):
        assert prediction.text
        assert prediction.text in row["context"]
        assert (prediction.no_answer_score is not None) == has_no_answer


# The generative route


def test_generative_pairs(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [
        ROWS[0],
        question("none", "some text"),
        question("open", "", "Ada", "Lovelace", offsets=[-1, -1]),
    ]
    pairs = generative_pairs(Dataset.from_list(rows))
    assert pairs.to_list() == [
        {
            "id": "plain",
            "source": "question: who was it? context: The prince finds a horse.",
            "target": "The prince",
        },
        {"id": "none", "source": "question: who was it? context: some text", "target": ""},
        {"id": "open", "source": "question: who was it?", "target": "Ada"},
    ]
    by_heart = generative_pairs(Dataset.from_list(rows), with_context=False)
    assert set(by_heart["source"]) == {"question: who was it?"}
    encoded, report = encode_pairs(pairs, tokenizer)
    assert (report.kept, encoded[1]["labels"]) == (3, [tokenizer.eos_token_id])


# Whole sets


def test_labels_of_tiny_world_decode_to_its_answers(tmp_path: Path) -> None:
    rows, _ = load_question_answering("tiny_world", limit=300, cache_dir=tmp_path)
    tokenizer = train_tokenizer([*rows["context"], *rows["question"]], 600)
    windows, report = encode_questions(rows, tokenizer, for_training=False)
    assert report == WindowsReport(questions=300, windows=300)
    predictions = predict_spans(rows, windows, *perfect_logits(windows))
    assert [one.text for one in predictions] == [one["text"][0] for one in rows["answers"]]


@pytest.mark.slow
def test_labels_of_shared_squad_are_its_answers_but_inside_tokens(
    shared_data: Path, tmp_path: Path
) -> None:
    rows, _ = load_question_answering(shared_data / "squad", "validation", cache_dir=tmp_path)
    rows = rows.select(range(0, len(rows), 9))
    tokenizer = train_tokenizer(rows["context"], 4000)
    windows, report = encode_questions(rows, tokenizer, for_training=False)
    assert report.questions_without_answer == 0
    assert report.inexact_labels < 0.02 * report.windows
    predictions = predict_spans(
        rows, windows, *perfect_logits(windows), n_best=2, max_answer_length=100
    )
    wrong = [
        (one.text, row["answers"]["text"])
        for one, row in zip(predictions, rows, strict=True)
        if one.text not in row["answers"]["text"]
    ]
    # An inexact label holds its answer and a little more.
    assert len(wrong) <= report.inexact_labels
    assert all(any(answer in text for answer in answers) for text, answers in wrong)
