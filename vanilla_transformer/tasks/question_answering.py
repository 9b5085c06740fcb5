"""Question answering: questions to windows over their contexts, logits back to pieces of text.

A window is `question </s> context </s>` with as much of the context as there is room for; a long
context makes several that overlap. `start_positions` and `end_positions` are the first and the last
token of the answer. Position 0, always in the question, means "no answer in this window".

Where there is no context, or the answer need not be cut out of it, the same questions become text
pairs for `VanillaTransformerForConditionalGeneration`, encoded like any translation.

Shapes: `W` windows, `S` tokens of a window.
"""

import copy
import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, List, Value
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from ..atomic_file import atomic_file

# What the loss leaves out, as everywhere in torch.
_IGNORED = -100

# No trained model scores this low; heads mask with the lowest number of their type, and that of
# float16 is -65504.
_MASKED = -1e4

# Windows searched at once: the scores of all spans of 64 windows are 6 MB (384 tokens, answers of
# up to 30).
_SEARCHED_AT_ONCE = 64

# Columns that only count, and are taken off before the windows are handed out.
_COUNTING = {"row": Value("int32"), "is_cut": Value("bool"), "is_exact": Value("bool")}


@dataclass
class WindowsReport:
    """What became of the questions.

    Attributes:
        questions: How many there were.
        windows: How many windows are in the data.
        long_contexts: Questions whose context needs more than one window.
        cut_questions: Questions of more tokens than allowed; their ends are cut off.
        windows_without_answer: Windows that hold no answer whole: left out of training, or, with
            `has_no_answer`, labelled with position 0; in evaluation the loss ignores them, or
            that label is theirs.
        questions_without_answer: Questions none of whose windows holds an answer whole, those
            that have no answer included; without `has_no_answer`, training does not see them.
        inexact_labels: Windows where the answer begins or ends inside a token: the label is the
            whole token, and no prediction of tokens can be exactly right.
    """

    questions: int = 0
    windows: int = 0
    long_contexts: int = 0
    cut_questions: int = 0
    windows_without_answer: int = 0
    questions_without_answer: int = 0
    inexact_labels: int = 0


@dataclass(frozen=True)
class SpanCandidate:
    """A piece of the context: `text` is its characters from `start` up to `end`.

    `score` is the sum of the start and end logit, `probability` its share among the n best (and
    "no answer", where the model knows that).
    """

    text: str
    start: int
    end: int
    score: float
    probability: float


@dataclass(frozen=True)
class WindowSpans:
    """What one window says about its question.

    Attributes:
        example_id: Of the question.
        no_answer: Sum of the logits at position 0.
        spans: The best ones: score, and characters of the context from where up to where.
    """

    example_id: str
    no_answer: float
    spans: tuple[tuple[float, int, int], ...]


@dataclass(frozen=True)
class SpanPrediction:
    """What is answered to a question: `text`, "" for "no answer", and the best spans, best first.

    `no_answer_score` is by how much the logits prefer no answer to the best span (natural
    logarithm of the odds); None where the model has no score for it.
    """

    id: str
    text: str
    n_best: tuple[SpanCandidate, ...]
    no_answer_score: float | None


# Questions to windows


def encode_questions(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    for_training: bool,
    has_no_answer: bool = False,
    max_length: int = 384,
    stride: int = 128,
    max_question_length: int = 64,
    num_proc: int | None = None,
) -> tuple[Dataset, WindowsReport]:
    """Turn questions with contexts into windows.

    A window is labelled with the first of the answers that lies in it whole, by whose characters
    and the offsets of the tokens. A window that has none is left out of training, since SQuAD 1.1
    has no right label for it; with `has_no_answer` it stays and teaches position 0. For evaluation
    every window stays, and without `has_no_answer` the loss ignores those (-100).

    Args:
        dataset: Questions as `load_question_answering` gives them.
        tokenizer: A fast tokenizer that puts the first of a pair first.
        for_training: Whether the windows are to learn from; else they also get the columns that
            `predict_spans` needs.
        has_no_answer: Whether the model can answer "none" (the field of the same name in its
            configuration). SQuAD 2.0 needs it.
        max_length: Tokens of a window, question and special tokens included.
        stride: Tokens of context that neighbouring windows share.
        max_question_length: Longer questions lose their end.
        num_proc: Processes to encode with.

    Returns:
        Windows in the order of the questions, with the tokenizer's inputs, `start_positions` and
        `end_positions`; for evaluation also `example_id` and the characters of the context that
        each token stands for, `context_starts` and `context_ends` [S], -1 outside the context.
        And the counts.

    Raises:
        ValueError: No room for the context, a tokenizer without offsets, an open question, or, in
            training without `has_no_answer`, a question without an answer.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} does not say where its tokens are in the text; take a "
            "fast tokenizer"
        )
    room = max_length - max_question_length - tokenizer.num_special_tokens_to_add(pair=True)
    if min(max_question_length, stride + 1) < 1 or room <= stride:
        raise ValueError(
            f"max_length ({max_length}) leaves {room} tokens of context beside a question of "
            f"max_question_length ({max_question_length}); that must be more than the stride "
            f"({stride}), which must not be negative"
        )
    features = {name: List(Value("int32")) for name in tokenizer.model_input_names}
    features |= {"start_positions": Value("int32"), "end_positions": Value("int32")}
    if not for_training:
        features["example_id"] = Value("string")
        features |= {name: List(Value("int32")) for name in ("context_starts", "context_ends")}
    windows = dataset.map(
        _encode_batch,
        batched=True,
        batch_size=200,
        with_indices=True,
        num_proc=num_proc,
        fn_kwargs={
            # A tokenizer remembers how it last cut texts, and would be saved so.
            "tokenizer": copy.deepcopy(tokenizer),
            "for_training": for_training,
            "has_no_answer": has_no_answer,
            "max_length": max_length,
            "stride": stride,
            "max_question_length": max_question_length,
        },
        remove_columns=dataset.column_names,
        features=Features(features | _COUNTING),
        desc="encoding",
    )
    counted = windows.select_columns([*_COUNTING, "start_positions"]).with_format("numpy")[:]
    rows, starts = np.asarray(counted["row"]), np.asarray(counted["start_positions"])
    has_answer = starts > 0
    report = WindowsReport(
        questions=len(dataset),
        windows=len(windows),
        long_contexts=int((np.bincount(rows) > 1).sum()) if len(rows) else 0,
        cut_questions=len(np.unique(rows[np.asarray(counted["is_cut"], dtype=bool)])),
        windows_without_answer=int((~has_answer).sum()),
        questions_without_answer=len(dataset) - len(np.unique(rows[has_answer])),
        inexact_labels=int((~np.asarray(counted["is_exact"], dtype=bool)).sum()),
    )
    windows = windows.remove_columns(list(_COUNTING))
    if for_training and not has_no_answer and not has_answer.all():
        windows = windows.select(np.flatnonzero(has_answer))
        report.windows = len(windows)
    return windows, report


def _encode_batch(
    batch: dict[str, list[Any]],
    indices: list[int],
    tokenizer: PreTrainedTokenizerBase,
    for_training: bool,
    has_no_answer: bool,
    max_length: int,
    stride: int,
    max_question_length: int,
) -> dict[str, list[Any]]:
    """Make the windows of a batch of questions."""
    for question_id, context, answers in zip(
        batch["id"], batch["context"], batch["answers"], strict=True
    ):
        if not context.strip():
            raise ValueError(
                f"question {question_id!r} has no context to find its answer in; make text pairs "
                "of open questions with generative_pairs"
            )
        if for_training and not has_no_answer and not answers["text"]:
            raise ValueError(
                f"question {question_id!r} has no answer; train on such questions with "
                "has_no_answer=True here and in the model's configuration"
            )
    questions, is_cut = _cut_questions(batch["question"], tokenizer, max_question_length)
    encoded = tokenizer(
        questions,
        batch["context"],
        truncation="only_second",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    windows: dict[str, list[Any]] = {name: encoded[name] for name in tokenizer.model_input_names}
    added = ["start_positions", "end_positions", *_COUNTING]
    if not for_training:
        added += ["example_id", "context_starts", "context_ends"]
    windows |= {name: [] for name in added}
    for window, example in enumerate(encoded["overflow_to_sample_mapping"]):
        offsets = np.array(encoded["offset_mapping"][window], dtype=np.int32).reshape(-1, 2)
        in_context = np.array([side == 1 for side in encoded.sequence_ids(window)])
        offsets[~in_context] = -1
        span = _label(offsets, in_context, batch["context"][example], batch["answers"][example])
        start, end, is_exact = span or (0, 0, True)
        if span is None and not for_training and not has_no_answer:
            start = end = _IGNORED
        row = {
            "start_positions": start,
            "end_positions": end,
            "row": indices[example],
            "is_cut": is_cut[example],
            "is_exact": is_exact,
            "example_id": batch["id"][example],
            "context_starts": offsets[:, 0],
            "context_ends": offsets[:, 1],
        }
        for name in added:
            windows[name].append(row[name])
    return windows


def _cut_questions(
    questions: list[str], tokenizer: PreTrainedTokenizerBase, max_question_length: int
) -> tuple[list[str], list[bool]]:
    """Cut off what questions have beyond so many tokens; say which ones had it."""
    encoded = tokenizer(
        questions, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    kept, is_cut = [], []
    for question, offsets in zip(questions, encoded["offset_mapping"], strict=True):
        is_cut.append(len(offsets) > max_question_length)
        kept.append(question[: offsets[max_question_length - 1][1]] if is_cut[-1] else question)
    return kept, is_cut


def _label(
    offsets: np.ndarray,
    in_context: np.ndarray,
    context: str,
    answers: Mapping[str, Sequence[Any]],
) -> tuple[int, int, bool] | None:
    """First and last token of the first answer that is in the window whole.

    Args:
        offsets: Characters of each token [S, 2], -1 outside the context.
        in_context: Which tokens are the context's [S].
        context: The whole of it.
        answers: The answers in it.

    Returns:
        The two positions and whether they hold the answer and nothing else; None if no answer is
        in the window.
    """
    if not in_context.any():
        return None
    starts, ends = offsets[:, 0], offsets[:, 1]
    window_start, window_end = starts[in_context][0], ends[in_context][-1]
    for text, start in zip(answers["text"], answers["answer_start"], strict=True):
        end = start + len(text)
        # An answer that is known but not located has the offset -1: before any window.
        if start < window_start or end > window_end:
            continue
        # A token without characters, such as the blank before a word, cannot be predicted.
        tokens = np.flatnonzero((ends > starts) & (ends > start) & (starts < end))
        if len(tokens):
            first, last = int(tokens[0]), int(tokens[-1])
            # Some tokenizers count the blank before a word to it at the beginning of a window.
            return first, last, context[starts[first] : ends[last]].strip() == text.strip()
    return None


def question_answering_collator(
    tokenizer: PreTrainedTokenizerBase, pad_to_multiple_of: int | None = None
) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    """Make the function that pads windows into a batch of tensors, leaving out other columns.

    Returns:
        A collator giving the tokenizer's inputs [B, S], padded on the right, and, where the
        windows have them, `start_positions` and `end_positions` [B].
    """
    pad = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=pad_to_multiple_of)
    names = {*tokenizer.model_input_names, "start_positions", "end_positions"}

    def collate(windows: list[dict[str, Any]]) -> dict[str, Any]:
        return dict(
            pad([{name: window[name] for name in window if name in names} for window in windows])
        )

    return collate


# Logits to answers


def predict_spans(
    examples: Iterable[Mapping[str, Any]],
    features: Dataset,
    start_logits: np.ndarray | torch.Tensor | Sequence[Any],
    end_logits: np.ndarray | torch.Tensor | Sequence[Any],
    *,
    n_best: int = 20,
    max_answer_length: int = 30,
    no_answer_threshold: float | None = None,
) -> list[SpanPrediction]:
    """Find the best pieces of each context, from all its windows.

    Start and end are searched together: of all spans in the context of up to `max_answer_length`
    tokens, those with the greatest sum of logits (not, as is customary, pairs of the best starts
    with the best ends). A text found more than once counts once, where it scores best. Blanks at
    its ends are left out, and it is the context's own characters.

    The score for "no answer" is the sum of the logits at position 0 in the window where that is
    least (as BERT's for SQuAD 2.0: other windows rightly say that they do not hold the answer).

    Args:
        examples: The questions, with `id` and `context`.
        features: Their windows, as `encode_questions` makes them for evaluation.
        start_logits: [W, S], in the order of the windows, padded or one row each.
        end_logits: As `start_logits`.
        n_best: How many spans to keep for a question; there may be fewer.
        max_answer_length: In tokens.
        no_answer_threshold: Answer "" where `no_answer_score` is above; None answers always.

    Returns:
        A prediction for each example, in their order. One of whose context no token can be an
        answer is "" without spans.

    Raises:
        ValueError: Windows and logits or examples that do not belong together, logits that are
            not numbers, or a threshold for a model without a no-answer score.
    """
    windows = search_windows(
        features, start_logits, end_logits, n_best=n_best, max_answer_length=max_answer_length
    )
    return join_windows(examples, windows, n_best=n_best, no_answer_threshold=no_answer_threshold)


def join_windows(
    examples: Iterable[Mapping[str, Any]],
    windows: Iterable[WindowSpans],
    *,
    n_best: int = 20,
    no_answer_threshold: float | None = None,
) -> list[SpanPrediction]:
    """Answer questions from what was found in their windows, which may come in any order.

    Args, Returns and Raises: as `predict_spans`.
    """
    spans: dict[str, list[tuple[float, int, int]]] = {}
    nulls: dict[str, float] = {}
    for window in windows:
        spans.setdefault(window.example_id, []).extend(window.spans)
        null = nulls.get(window.example_id, math.inf)
        nulls[window.example_id] = min(null, window.no_answer)

    predictions = []
    for example in examples:
        if example["id"] not in spans:
            raise ValueError(f"question {example['id']!r} has no window; encode the same questions")
        found = spans.pop(example["id"])
        null_score = nulls[example["id"]]
        predictions.append(_prediction(example, found, null_score, n_best))
    if spans:
        raise ValueError(
            f"{len(spans)} questions have windows but are not among the examples, "
            f"{next(iter(spans))!r} first; encode the same questions"
        )
    return (
        predictions
        if no_answer_threshold is None
        else with_threshold(predictions, no_answer_threshold)
    )


def with_threshold(predictions: Iterable[SpanPrediction], threshold: float) -> list[SpanPrediction]:
    """Answer "" where the no-answer score is above `threshold`, else the best span.

    Raises:
        ValueError: A prediction without a no-answer score.
    """
    answered = []
    for prediction in predictions:
        if prediction.no_answer_score is None:
            raise ValueError(
                f"question {prediction.id!r} has no no-answer score: the model masks position 0; "
                "a threshold needs one trained with has_no_answer=True"
            )
        is_unanswered = prediction.no_answer_score > threshold or not prediction.n_best
        text = "" if is_unanswered else prediction.n_best[0].text
        answered.append(dataclasses.replace(prediction, text=text))
    return answered


def search_windows(
    features: Dataset,
    start_logits: np.ndarray | torch.Tensor | Sequence[Any],
    end_logits: np.ndarray | torch.Tensor | Sequence[Any],
    *,
    n_best: int = 20,
    max_answer_length: int = 30,
) -> Iterator[WindowSpans]:
    """Find the best pieces of context in each window by itself.

    Args and Raises: as `predict_spans`.

    Yields:
        What was found, in the order of the windows.
    """
    if n_best < 1 or max_answer_length < 1:
        raise ValueError(
            f"n_best ({n_best}) and max_answer_length ({max_answer_length}) must be at least 1"
        )
    if not len(features) == len(start_logits) == len(end_logits):
        raise ValueError(
            f"{len(features)} windows do not go with {len(start_logits)} rows of start logits and "
            f"{len(end_logits)} of end logits; give each window its row"
        )
    columns = features.select_columns(["example_id", "context_starts", "context_ends"])
    for begin in range(0, len(features), _SEARCHED_AT_ONCE):
        window = slice(begin, begin + _SEARCHED_AT_ONCE)
        rows = columns[window]
        lengths = [len(row) for row in rows["context_starts"]]
        shape = (len(lengths), max(lengths))
        characters = np.full((2, *shape), -1, dtype=np.int64)
        logits = np.zeros((2, *shape))
        for row, length in enumerate(lengths):
            characters[0, row, :length] = rows["context_starts"][row]
            characters[1, row, :length] = rows["context_ends"][row]
        for side, given in enumerate((start_logits, end_logits)):
            for row, values in enumerate(given[window]):
                values = torch.as_tensor(values).detach().double().cpu().numpy()
                if len(values) < lengths[row]:
                    raise ValueError(
                        f"window {begin + row} has {lengths[row]} tokens and {len(values)} logits"
                    )
                logits[side, row, : lengths[row]] = values[: lengths[row]]
        if np.isnan(logits).any():
            row = int(np.flatnonzero(np.isnan(logits).any(axis=(0, 2)))[0])
            raise ValueError(f"the logits of window {begin + row} are not numbers (NaN)")
        nulls = logits[:, :, 0].sum(axis=0)
        can_be = (characters[1] > characters[0]) & (logits > _MASKED).all(axis=0)
        starts, ends = np.where(can_be, logits, -np.inf)
        # Scores of spans by window, length and start [W, L, S]: every pair that is allowed.
        longest = min(max_answer_length, shape[1])
        scores = np.full((shape[0], longest, shape[1]), -np.inf)
        for length in range(longest):
            stop = shape[1] - length
            scores[:, length, :stop] = starts[:, :stop] + ends[:, length:]
        flat = scores.reshape(shape[0], -1)
        count = min(n_best, flat.shape[1])
        best = np.argpartition(flat, -count, axis=1)[:, -count:]
        values = np.take_along_axis(flat, best, axis=1)
        lengths_less_one, first = np.divmod(best, shape[1])
        every = np.arange(shape[0])[:, None]
        from_character = characters[0][every, first]
        to_character = characters[1][every, np.minimum(first + lengths_less_one, shape[1] - 1)]
        for row, question_id in enumerate(rows["example_id"]):
            allowed = np.isfinite(values[row])
            found = zip(
                values[row][allowed].tolist(),
                from_character[row][allowed].tolist(),
                to_character[row][allowed].tolist(),
                strict=True,
            )
            yield WindowSpans(question_id, float(nulls[row]), tuple(found))


def _prediction(
    example: Mapping[str, Any],
    found: list[tuple[float, int, int]],
    null_score: float,
    n_best: int,
) -> SpanPrediction:
    """The best of the spans found in all windows of a question."""
    context = example["context"]
    best: dict[str, tuple[float, int, int]] = {}
    # Of equals the first in the text, and the shortest.
    for score, start, end in sorted(found, key=lambda span: (-span[0], span[1], span[2])):
        piece = context[start:end]
        text = piece.strip()
        if text and text not in best:
            begin = start + len(piece) - len(piece.lstrip())
            best[text] = (score, begin, begin + len(text))
        if len(best) == n_best:
            break
    has_null = null_score > _MASKED
    scores = [score for score, _, _ in best.values()]
    exponentials = np.exp(
        np.array([*scores, *([null_score] if has_null else [])])
        - max([*scores, *([null_score] if has_null else [])], default=0.0)
    )
    shares = (exponentials / exponentials.sum()).tolist() if len(exponentials) else []
    candidates = tuple(
        SpanCandidate(text, start, end, score, share)
        # "No answer" has the last share.
        for (text, (score, start, end)), share in zip(best.items(), shares, strict=False)
    )
    no_answer_score = None
    if has_null:
        no_answer_score = null_score - scores[0] if scores else math.inf
    return SpanPrediction(
        example["id"], candidates[0].text if candidates else "", candidates, no_answer_score
    )


# The official formats


def write_predictions(predictions: Iterable[SpanPrediction], path: Path) -> None:
    """Write {id: text}, the file that both official SQuAD scripts take."""
    _write_json({prediction.id: prediction.text for prediction in predictions}, path)


def write_no_answer_probabilities(predictions: Iterable[SpanPrediction], path: Path) -> None:
    """Write {id: probability of no answer}, the `--na-prob-file` of SQuAD 2.0's script.

    It is that of no answer against the best span alone: the logistic function of the score. A
    threshold on the score is the same function of it here.

    Raises:
        ValueError: A prediction without a no-answer score.
    """
    probabilities = {}
    for prediction in predictions:
        score = prediction.no_answer_score
        if score is None:
            raise ValueError(f"question {prediction.id!r} has no no-answer score to write")
        # Each branch is free of overflow.
        small = math.exp(-abs(score))
        probabilities[prediction.id] = 1 / (1 + small) if score >= 0 else small / (1 + small)
    _write_json(probabilities, path)


def write_n_best(predictions: Iterable[SpanPrediction], path: Path) -> None:
    """Write {id: [{"text", "start", "end", "score", "probability"}, ...]}, best first."""
    _write_json(
        {
            prediction.id: [dataclasses.asdict(candidate) for candidate in prediction.n_best]
            for prediction in predictions
        },
        path,
    )


def _write_json(content: Mapping[str, Any], path: Path) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


# The generative route


def generative_pairs(dataset: Dataset, *, with_context: bool = True) -> Dataset:
    """Make text pairs: question and context in, answer out.

    The source is `question: ... context: ...`, or `question: ...` alone where a question has no
    context. The target is the first answer, and empty where there is none: the model then learns
    to say nothing, which the metric of SQuAD 2.0 takes as "no answer".

    `encode_pairs` encodes them; for evaluation with `max_length=None`, since it drops longer pairs.

    Args:
        dataset: Questions as `load_question_answering` gives them.
        with_context: False leaves out the context (the model must know the answer by heart).

    Returns:
        The columns `id`, `source` and `target`, in the order of the questions.
    """

    def pair(batch: dict[str, list[Any]]) -> dict[str, list[str]]:
        sources = []
        for question, context in zip(batch["question"], batch["context"], strict=True):
            shown = f" context: {context}" if with_context and context.strip() else ""
            sources.append(f"question: {question}{shown}")
        targets = [(answers["text"] or [""])[0] for answers in batch["answers"]]
        return {"id": batch["id"], "source": sources, "target": targets}

    text = Value("string")
    return dataset.map(
        pair,
        batched=True,
        remove_columns=dataset.column_names,
        features=Features({"id": text, "source": text, "target": text}),
        desc="writing pairs",
    )
