"""What a model got wrong, as one self-contained HTML page to filter, sort and search.

One page for question answering, with the answers marked in their contexts, and one for natural
language inference, with a confusion matrix to click. The rows travel as JSON, and the page draws
those in view only: ten thousand of them stay quick to browse.

Shapes: `N` examples, `C` labels.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from datasets import ClassLabel, Dataset
from markupsafe import Markup

from ..atomic_file import atomic_file
from ..data.inference_corpora import LABELS, TWO_WAY_LABELS
from ..evaluation.natural_language_inference import slice_masks
from ..evaluation.question_answering import Version, question_word, score_answer
from ..tasks.question_answering import SpanCandidate, SpanPrediction

Slices = Mapping[str, np.ndarray | Sequence[bool]]

# What would end or open a script inside the page, and halves of a character, which UTF-8 lacks.
_UNSAFE = re.compile("[<\ud800-\udfff]")


# Question answering


def write_question_answering_errors(
    examples: Iterable[Mapping[str, Any]],
    predictions: Sequence[SpanPrediction],
    path: str | Path,
    *,
    title: str = "",
) -> Path:
    """Write the page that shows each question with the answer given and the right ones.

    Scores are those of `evaluate_question_answering`: as SQuAD 2.0 has them if any question has no
    answer, else as 1.1. Texts may hold anything: they appear as text.

    Args:
        examples: The questions as `load_question_answering` gives them: `id`, `question`,
            `context` and `answers`; a `title` is shown, other columns are not.
        predictions: One for each example, in their order, as `predict_spans` gives them. A text
            that is not among its own best spans (one that a model wrote freely) is shown without
            a place in the context and without a probability.
        path: Where the HTML goes, whole or not at all; parent folders are made.
        title: Heading of the page.

    Returns:
        The page's path.

    Raises:
        ValueError: No question, predictions for other questions or in another order, an answer
            or a candidate that is not at its place in the context, a probability outside [0, 1],
            or a path that cannot be written.
    """
    rows = list(examples)
    _check_count("questions", rows, "predictions", len(predictions))
    for number, (row, prediction) in enumerate(zip(rows, predictions, strict=True)):
        _check_question(number, row, prediction)
    version: Version = "1.1" if all(row["answers"]["text"] for row in rows) else "2.0"
    contexts = _Contexts()
    questions = [
        _question(row, prediction, contexts, version)
        for row, prediction in zip(rows, predictions, strict=True)
    ]
    return _write_page(
        path,
        "errors_question_answering.html.jinja",
        {"contexts": contexts.texts, "questions": questions},
        title=title or "Question answering: right and wrong answers",
        version=version,
    )


def _check_question(number: int, row: Mapping[str, Any], prediction: SpanPrediction) -> None:
    """Refuse a row that is not of the schema, and a prediction that is not of the row."""
    _check_texts(number, row, ("id", "question", "context"))
    if not isinstance(prediction, SpanPrediction):
        raise ValueError(
            f"prediction {number} is a {type(prediction).__name__} and must be a SpanPrediction; "
            "predict_spans gives them"
        )
    if prediction.id != row["id"]:
        raise ValueError(
            f"prediction {number} is for the question {prediction.id!r} and example {number} has "
            f"the id {row['id']!r}; give predictions in the order of the examples, as "
            "predict_spans does"
        )
    answers = row.get("answers")
    if not isinstance(answers, Mapping) or not {"text", "answer_start"} <= answers.keys():
        raise ValueError(
            f"question {row['id']!r} has the answers {answers!r}; they must be as in SQuAD, "
            '{"text": [...], "answer_start": [...]}'
        )
    if len(answers["text"]) != len(answers["answer_start"]):
        raise ValueError(
            f"question {row['id']!r} has {len(answers['text'])} answers and "
            f"{len(answers['answer_start'])} places of answers; give each one its answer_start"
        )


class _Contexts:
    """The contexts, each held once however many questions share it.

    Offsets here count characters as Python does, code points; JavaScript counts units of UTF-16,
    of which an emoji has two.
    """

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._numbers: dict[str, int] = {}
        self._units: list[np.ndarray] = []

    def add(self, text: str) -> int:
        """Hold a context; gives its number."""
        number = self._numbers.setdefault(text, len(self.texts))
        if number == len(self.texts):
            self.texts.append(text)
            code_points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
            self._units.append(np.concatenate([[0], np.cumsum(1 + (code_points > 0xFFFF))]))
        return number

    def span(self, number: int, start: int, end: int) -> list[int]:
        """Where JavaScript finds the characters from `start` up to `end`."""
        return self._units[number][[start, end]].tolist()


def _question(
    row: Mapping[str, Any], prediction: SpanPrediction, contexts: _Contexts, version: Version
) -> dict[str, Any]:
    """One question as the page reads it. An answer is [start, end], or text without a place."""
    context = contexts.add(row["context"])
    answers: list[list[int] | str] = []
    for text, start in zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True):
        answer: list[int] | str = text
        # An answer that is known but not located has -1.
        if start != -1:
            _check_place(row, "answer", text, start, start + len(text))
            answer = contexts.span(context, start, start + len(text))
        # Several annotators often mark the same words.
        if answer not in answers:
            answers.append(answer)
    for candidate in prediction.n_best:
        _check_candidate(row, candidate)
    chosen = next((one for one in prediction.n_best if one.text == prediction.text), None)
    no_answer = _no_answer(prediction)
    probability = no_answer[1] if no_answer and not prediction.text else None
    scores = score_answer(prediction.text, row["answers"]["text"], version)
    return {
        "id": row["id"],
        "title": str(row.get("title") or ""),
        "question": row["question"],
        "word": question_word(row["question"]),
        "context": context,
        "answers": answers,
        "predicted": (
            contexts.span(context, chosen.start, chosen.end) if chosen else prediction.text
        ),
        "probability": _short(chosen.probability) if chosen else probability,
        "exact_match": bool(scores["exact_match"]),
        "f1": round(scores["f1"], 6),
        "n_best": [
            [
                *contexts.span(context, one.start, one.end),
                round(one.score, 3),
                _short(one.probability),
            ]
            for one in prediction.n_best
        ],
        "no_answer": no_answer,
    }


def _no_answer(prediction: SpanPrediction) -> list[Any] | None:
    """Score and probability of "no answer"; None where the model has no score for it.

    Its probability is what the candidates leave: the shares of all of them and of "no answer"
    sum to 1.
    """
    score = prediction.no_answer_score
    if score is None:
        return None
    if math.isnan(score):
        raise ValueError(
            f"question {prediction.id!r} has the no_answer_score {score}, which must be a number; "
            "see whether the model's logits are finite"
        )
    left = 1 - math.fsum(candidate.probability for candidate in prediction.n_best)
    # JSON has no infinity, the score of a question of whose context nothing can be an answer.
    shown: float | str = round(score, 3) if math.isfinite(score) else str(score)
    return [shown, _short(min(max(left, 0.0), 1.0))]


def _check_candidate(row: Mapping[str, Any], candidate: SpanCandidate) -> None:
    """Refuse a candidate that is elsewhere in the context, or whose numbers are none."""
    _check_place(row, "candidate", candidate.text, candidate.start, candidate.end)
    if not (math.isfinite(candidate.score) and 0 <= candidate.probability <= 1):
        raise ValueError(
            f"question {row['id']!r}, candidate {candidate.text!r}, has the score "
            f"{candidate.score} and the probability {candidate.probability}; the score must be "
            "finite and the probability lie in [0, 1]: take both from predict_spans"
        )


def _check_place(row: Mapping[str, Any], what: str, text: str, start: int, end: int) -> None:
    """Refuse to mark words that are not the ones meant."""
    found = row["context"][max(start, 0) : max(end, 0)]
    if start < 0 or found != text or not text:
        raise ValueError(
            f"question {row['id']!r}: the {what} {text!r} must be what the context has at "
            f"characters {start} to {end}, and that is {found!r}; use the examples that were "
            "encoded, as load_question_answering gives them (it mends offsets, -1 for no place)"
        )


# Natural language inference


def write_inference_errors(
    examples: Iterable[Mapping[str, Any]],
    predictions: np.ndarray | Sequence[Sequence[float]] | Sequence[int],
    path: str | Path,
    *,
    names: Sequence[str] = LABELS,
    slices: Slices | Mapping[str, Slices] | None = None,
    title: str = "",
) -> Path:
    """Write the page that shows each pair with its label and what the model thinks of it.

    Texts may hold anything: they appear as text.

    Args:
        examples: The pairs, with `premise`, `hypothesis` and `label`, a position in `names` or -1
            for none; an `id` is shown. `load_inference` gives them.
        predictions: Probabilities [N, C], columns in the order of `names`, as
            `label_probabilities` gives them. Where `names` are `TWO_WAY_LABELS`, [N, 3] in the
            order of `LABELS` will do too: as in `evaluate_inference` the likeliest of the three is
            taken first, and neutral and contradiction then both count as not_entailment. Or
            labels [N] without probabilities, positions in `names`, -1 for a text that is none, as
            `labels_from_text` gives them.
        path: Where the HTML goes, whole or not at all; parent folders are made.
        names: The labels, in the order of their numbers.
        slices: Name -> mask [N], or group -> name -> mask; {} for none. By default those of
            `slice_masks`. A pair without a gold label is then in no slice that asks for one.
        title: Heading of the page.

    Returns:
        The page's path.

    Raises:
        ValueError: No pair, a row that lacks text or whose label is no position in `names`,
            probabilities of another shape or that are none, labels that are none, masks that are
            not boolean [N], default slices for labels that are not ours, or a path that cannot be
            written.
    """
    rows = list(examples)
    given = np.asarray(predictions)
    is_written = given.ndim == 1 and given.dtype.kind in "iu"
    what = "predicted labels" if is_written else "rows of probabilities"
    _check_count("pairs", rows, what, len(given) if given.ndim else 0)
    names = tuple(names)
    for number, row in enumerate(rows):
        _check_pair(number, row, names)
    labels = np.array([row["label"] for row in rows], dtype=np.int64)
    columns: tuple[str, ...] = ()
    shares = np.zeros((len(rows), 0))
    if is_written:
        predicted = _written(given, names)
    else:
        shares = given.astype(np.float64)
        columns = _columns(shares, names)
        # Neutral and contradiction are the second of two labels.
        predicted = np.minimum(shares.argmax(axis=1), len(names) - 1).tolist()
    if slices is None:
        slices = _default_slices(rows, labels, names)
    masks = _flat(slices, len(rows))
    members = _memberships(masks.values(), len(rows))
    pairs = [
        {
            "id": str(row["id"]) if row.get("id") is not None else f"row {number}",
            "premise": row["premise"],
            "hypothesis": row["hypothesis"],
            "label": int(labels[number]),
            "predicted": predicted[number],
            "probabilities": list(map(_short, shares[number].tolist())),
            "slices": members[number],
        }
        for number, row in enumerate(rows)
    ]
    return _write_page(
        path,
        "errors_inference.html.jinja",
        {
            "labels": names,
            "columns": columns,
            "slices": list(masks),
            "pairs": pairs,
        },
        title=title or "Natural language inference: right and wrong labels",
        has_probabilities=not is_written,
    )


def _check_pair(number: int, row: Mapping[str, Any], names: tuple[str, ...]) -> None:
    """Refuse a row that is no pair with a label."""
    _check_texts(number, row, ("premise", "hypothesis"))
    label = row.get("label")
    # True and False are numbers to Python, and no labels.
    is_number = isinstance(label, (int, np.integer)) and not isinstance(label, bool)
    if not (is_number and label in range(-1, len(names))):
        raise ValueError(
            f"example {number} has the label {label!r}, which must be a position in names "
            f"({', '.join(names)}), or -1 where there is none; load_inference reads it so"
        )


def _check_names(names: tuple[str, ...]) -> None:
    """Refuse what cannot be told apart."""
    if len(set(names)) < len(names) or len(names) < 2:
        raise ValueError(f"names ({', '.join(names)}) must be two labels or more, each once")


def _written(labels: np.ndarray, names: tuple[str, ...]) -> list[int]:
    """Labels without probabilities, after a look at whether they are some."""
    _check_names(names)
    strange = np.flatnonzero((labels < -1) | (labels >= len(names)))
    if len(strange):
        raise ValueError(
            f"prediction {strange[0]} is the label {labels[strange[0]]}, which must be a position "
            f"in names ({', '.join(names)}), or -1 for a text that is none"
        )
    found: list[int] = labels.tolist()
    return found


def _columns(probabilities: np.ndarray, names: tuple[str, ...]) -> tuple[str, ...]:
    """What each column of the probabilities is for, after a look at whether they are some."""
    _check_names(names)
    columns = names
    if names == TWO_WAY_LABELS and probabilities.shape[1:] == (len(LABELS),):
        columns = LABELS
    if probabilities.shape[1:] != (len(columns),):
        raise ValueError(
            f"probabilities have the shape {list(probabilities.shape)} and must have "
            f"[{len(probabilities)}, {len(columns)}], a column for each of {', '.join(columns)}; "
            "give the names that the columns stand for"
        )
    # Sums of 16-bit probabilities miss 1 by less than this. A NaN fails every comparison.
    sound = (probabilities >= 0).all(axis=1) & (np.abs(probabilities.sum(axis=1) - 1) < 0.01)
    if not sound.all():
        row = int(np.argmin(sound))
        raise ValueError(
            f"row {row} has the probabilities {probabilities[row].tolist()}, which must lie "
            "between 0 and 1 and sum to 1; label_probabilities makes them of logits"
        )
    return columns


def _default_slices(
    rows: Sequence[Mapping[str, Any]], labels: np.ndarray, names: tuple[str, ...]
) -> dict[str, dict[str, np.ndarray]]:
    """The slices of `slice_masks`, which reads label 0 as entailment and knows no label -1."""
    if names[0] != LABELS[0]:
        raise ValueError(
            f"names ({', '.join(names)}) must begin with {LABELS[0]!r} for the default slices, "
            "which ask for it; give slices, {} for none"
        )
    columns = {column for row in rows for column in row} - {"id", "label"}
    content = {
        column: [_whole(value) if isinstance(value, str) else value for value in values]
        for column in sorted(columns)
        # Annotation is text, or a list of texts; no other column makes a slice.
        if all(map(_is_annotation, values := [row.get(column) for row in rows]))
    }

    def read(unknown: int) -> dict[str, dict[str, np.ndarray]]:
        numbers = np.where(labels < 0, unknown, labels)
        feature = ClassLabel(names=list(names))
        return slice_masks(Dataset.from_dict(content).add_column("label", numbers, feature=feature))

    groups = read(0)
    if (labels < 0).any():
        # Without a label a pair belongs where it would whatever the label is.
        other = read(1)
        groups = {
            group: {
                name: mask & other.get(group, {}).get(name, False) for name, mask in slices.items()
            }
            for group, slices in groups.items()
        }
    return groups


def _whole(text: str) -> str:
    """The text without halves of characters, which Arrow refuses."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _is_annotation(value: Any) -> bool:
    """Whether a column with such a value can be one that `slice_masks` reads."""
    if isinstance(value, (list, tuple)):
        return all(isinstance(one, str) for one in value)
    return value is None or isinstance(value, str)


def _flat(slices: Slices | Mapping[str, Slices], num_rows: int) -> dict[str, np.ndarray]:
    """The mask of each slice by one name, which begins with its group's."""
    flat: dict[str, np.ndarray] = {}
    for name, value in slices.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}: {inner}": np.asarray(mask) for inner, mask in value.items()}
        else:
            flat[name] = np.asarray(value)
    for name, mask in flat.items():
        if mask.shape != (num_rows,) or mask.dtype != np.bool_:
            raise ValueError(
                f"the slice {name!r} is of type {mask.dtype} and shape {list(mask.shape)}; it must "
                f"be a boolean mask of shape [{num_rows}], True for the pairs in it"
            )
    return flat


def _memberships(masks: Iterable[np.ndarray], num_rows: int) -> list[list[int]]:
    """For each row the numbers of the slices that it is in."""
    members: list[list[int]] = [[] for _ in range(num_rows)]
    for number, mask in enumerate(masks):
        for row in np.flatnonzero(mask).tolist():
            members[row].append(number)
    return members


# The page


def _check_count(what: str, rows: Sequence[Any], others: str, num_others: int) -> None:
    """Refuse no rows at all, and rows that do not pair with what is said about them."""
    if not rows:
        raise ValueError(f"there are no {what} to show (0 examples); check the split")
    if len(rows) != num_others:
        raise ValueError(
            f"there are {len(rows)} {what} and {num_others} {others}; give one for each example"
        )


def _check_texts(number: int, row: Mapping[str, Any], columns: Sequence[str]) -> None:
    """Refuse a row one of whose texts is missing or something else."""
    for column in columns:
        if not isinstance(row.get(column), str):
            raise ValueError(
                f"example {number} has the {column} {row.get(column)!r}, which must be text; give "
                "rows as the loaders of vanilla_transformer.data do"
            )


def _short(probability: float) -> float:
    """Four digits: more cannot be read, and thousands of rows have them."""
    return float(f"{probability:.4g}")


def _embedded(content: Any) -> Markup:
    """JSON for a script element, which no text inside can end."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # Both occur within strings only, where JSON may spell any character by its number.
    return Markup(_UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def _write_page(path: str | Path, template: str, content: Any, *, title: str, **more: Any) -> Path:
    """Fill a template in and write it, whole or not at all."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(template).render(title=title, data=_embedded(content), **more)
    path = Path(path)
    try:
        with atomic_file(path) as temporary:
            # Of what is not in the JSON, the title alone could hold half a character.
            temporary.write_text(page, encoding="utf-8", errors="replace")
    except OSError as error:
        raise ValueError(
            f"path ({str(path)!r}) cannot be written: {error.strerror or error}; it must name a "
            "file in a folder that you may write to"
        ) from error
    return path
