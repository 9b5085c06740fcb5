"""The error pages hold what was given, mark the right characters, and cannot be broken out of."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import re
import shutil
import subprocess
import unicodedata
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from vanilla_transformer.data.inference_corpora import LABELS, TWO_WAY_LABELS
from vanilla_transformer.evaluation.natural_language_inference import (
    evaluate_inference,
    slice_masks,
)
from vanilla_transformer.evaluation.question_answering import evaluate_question_answering
from vanilla_transformer.inspection.errors import (
    _Contexts,
    _embedded,
    write_inference_errors,
    write_question_answering_errors,
)
from vanilla_transformer.tasks.question_answering import (
    SpanCandidate,
    SpanPrediction,
    predict_spans,
)

HOSTILE = [
    "</script><script>document.title='taken'</script>",
    "</SCRIPT ><img src=x onerror=\"document.title='taken'\">",
    "<!-- <script>",
    "]]>&amp;&lt;",
    "{{ 7 * 7 }}{% raw %}",
    "\"'`\\u003c${document.title='taken'}",
    "\u2028\u2029\r\n\x00\x0b",
]


class Page(HTMLParser):
    """What a browser would see: elements, attributes, text, and the embedded rows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.source = text
        self._data = ""
        self.feed(text)
        self.data: dict[str, Any] = json.loads(self._data)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1] == (
            "script",
            {"type": "application/json", "id": "data"},
        ):
            self._data += data

    def handle_endtag(self, tag: str) -> None:
        # What follows belongs to no script.
        self.elements.append((f"/{tag}", {}))


def units(text: str, start: int, end: int) -> str:
    """What JavaScript's `text.slice(start, end)` gives: its offsets count units of UTF-16."""
    encoded = text.encode("utf-16-le", "surrogatepass")
    return encoded[2 * start : 2 * end].decode("utf-16-le", "surrogatepass")


def candidate(context: str, text: str, score: float = 1.0, share: float = 0.5) -> SpanCandidate:
    start = context.index(text)
    return SpanCandidate(text, start, start + len(text), score, share)


def question(context: str, *answers: str, **columns: Any) -> dict[str, Any]:
    places = [context.find(answer) for answer in answers]
    return {
        "id": "q",
        "question": "Who came?",
        "context": context,
        "answers": {"text": list(answers), "answer_start": places},
        **columns,
    }


def prediction(context: str, *texts: str, **fields: Any) -> SpanPrediction:
    best = tuple(
        candidate(context, text, 3.0 - rank, 0.5**rank / 2) for rank, text in enumerate(texts)
    )
    values = {"id": "q", "text": texts[0] if texts else "", "n_best": best}
    return SpanPrediction(**{**values, "no_answer_score": None, **fields})


def questions_page(
    tmp_path: Path, rows: list[dict[str, Any]], predictions: list[SpanPrediction], **options: Any
) -> Page:
    path = tmp_path / "questions.html"
    assert write_question_answering_errors(rows, predictions, path, **options) == path
    return Page(path.read_text(encoding="utf-8"))


def one_question(tmp_path: Path, row: dict[str, Any], given: SpanPrediction) -> dict[str, Any]:
    (found,) = questions_page(tmp_path, [row], [given]).data["questions"]
    return found


def is_self_contained(page: Page) -> bool:
    """Whether a page asks for nothing outside itself, and forbids itself to."""
    links = [
        value
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name in ("src", "href", "action", "srcset")
    ]
    policies = [a.get("content") or "" for tag, a in page.elements if tag == "meta"]
    return links == ["data:,"] and any("default-src 'none'" in policy for policy in policies)


# --- embedding ---


# A machine under load is slow: only what comes out counts.
@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=())))
def test_any_text_survives_embedding(text: str) -> None:
    embedded = str(_embedded({"text": text}))
    assert "<" not in embedded
    # The file is UTF-8, and two halves that meet are the character that they make.
    found = json.loads(embedded.encode("utf-8"))["text"]
    assert found.encode("utf-16", "surrogatepass") == text.encode("utf-16", "surrogatepass")


def test_numbers_that_json_lacks_are_not_written() -> None:
    with pytest.raises(ValueError, match="JSON"):
        _embedded([math.inf])


# --- question answering ---


@pytest.mark.parametrize(
    ("before", "text"),
    [
        ("", "plain"),
        ("😀 ", "after an emoji"),
        ("👩‍👩‍👧 🇫🇷 ", "a family 👩‍👩‍👧 and a flag 🇫🇷"),
        ("e\u0301te\u0301 ", "e\u0301"),
        ("e", "\u0301 alone"),
        ("𠮷野家 ", "𠮷"),
        ("\ud83d", "after half a character"),
        ("שלום ", "מלך ישראל"),
        ("a\u0000\r\n\u2028", "after breaks"),
    ],
)
def test_spans_are_at_their_characters(tmp_path: Path, before: str, text: str) -> None:
    context = f"{before}{text} 𝄞 end"
    row = one_question(tmp_path, question(context, text, "end"), prediction(context, "end", text))
    assert [units(context, *span) for span in row["answers"]] == [text, "end"]
    assert units(context, *row["predicted"]) == "end"
    assert [units(context, *span[:2]) for span in row["n_best"]] == ["end", text]


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=()), min_size=1), st.data())
def test_a_span_of_any_context(context: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(context)))
    end = data.draw(st.integers(start, len(context)))
    contexts = _Contexts()
    contexts.add("another one 😀")
    first, last = contexts.span(contexts.add(context), start, end)
    # The bytes: the halves of a character that meet in a text are a whole one when decoded.
    encoded = context.encode("utf-16-le", "surrogatepass")
    expected = context[start:end].encode("utf-16-le", "surrogatepass")
    assert encoded[2 * first : 2 * last] == expected


def test_the_place_is_the_one_given_not_the_first(tmp_path: Path) -> None:
    context = "Ada met Ada"
    row = question(context, answers={"text": ["Ada"], "answer_start": [8]})
    given = SpanPrediction("q", "Ada", (SpanCandidate("Ada", 0, 3, 1.0, 1.0),), None)
    found = one_question(tmp_path, row, given)
    assert found["answers"] == [[8, 11]]
    assert found["predicted"] == [0, 3]


def test_a_context_is_held_once(tmp_path: Path) -> None:
    contexts = ["Ada came home.", "Ben stayed."]
    rows = [question(contexts[number % 2], contexts[number % 2][:3]) for number in range(10)]
    given = [prediction(row["context"], row["context"][:3]) for row in rows]
    page = questions_page(tmp_path, rows, given)
    assert page.data["contexts"] == contexts
    assert [row["context"] for row in page.data["questions"]] == [0, 1] * 5
    assert page.source.count("Ada came home.") == 1


@pytest.mark.parametrize("text", HOSTILE)
def test_texts_of_questions_stay_text(tmp_path: Path, text: str) -> None:
    context = f"before {text} after"
    plain = questions_page(tmp_path, [question("Ada", "Ada")], [prediction("Ada", "Ada")])
    row = question(context, text, id=text, question=text, title=text)
    page = questions_page(tmp_path, [row], [prediction(context, text, id=text)], title=text)
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in plain.elements]
    (found,) = page.data["questions"]
    assert found["id"] == found["question"] == found["title"] == text
    assert units(page.data["contexts"][0], *found["answers"][0]) == text
    assert is_self_contained(page)


def test_half_a_character_in_the_title(tmp_path: Path) -> None:
    page = questions_page(
        tmp_path, [question("Ada", "Ada")], [prediction("Ada", "Ada")], title="\ud83d <b>"
    )
    assert "<title>? &lt;b&gt;</title>" in page.source


def test_scores_are_those_of_the_evaluation(tmp_path: Path) -> None:
    context = "The old king of France met Ada in Paris."
    answers = [["king of France", "old king"], ["Ada"], ["Paris"], []]
    texts = ["the king of France", "king", "in Paris", "Ada"]
    rows, given = [], []
    for number, (right, text) in enumerate(zip(answers, texts, strict=True)):
        rows.append(question(context, *right, id=str(number)))
        # The first was written freely: it is not so spelled in the context.
        best = () if number == 0 else (candidate(context, text),)
        given.append(SpanPrediction(str(number), text, best, 0.0))
    page = questions_page(tmp_path, rows, given)
    result = evaluate_question_answering(rows, {one.id: one.text for one in given})
    found = page.data["questions"]
    assert result["version"] == "2.0"
    assert 100 * np.mean([row["exact_match"] for row in found]) == pytest.approx(
        result["exact_match"]
    )
    assert 100 * np.mean([row["f1"] for row in found]) == pytest.approx(result["f1"], abs=1e-4)
    assert [row["exact_match"] for row in found] == [True, False, False, False]
    assert found[2]["f1"] == pytest.approx(2 / 3, abs=1e-6)
    assert {row["word"] for row in found} == {"who"}


@pytest.mark.parametrize(("answers", "version"), [((), "2.0"), (("Ada",), "1.1")])
def test_the_version_that_scores_is_named(
    tmp_path: Path, answers: tuple[str, ...], version: str
) -> None:
    # They differ on a text of which normalisation leaves nothing.
    rows = [question("the Ada", "the"), question("the Ada", *answers)]
    given = [prediction("the Ada", "the"), prediction("the Ada", "Ada")]
    page = questions_page(tmp_path, rows, given)
    assert re.search(rf"SQuAD\s+{re.escape(version)} counts", page.source)
    assert page.data["questions"][0]["f1"] == (1.0 if version == "2.0" else 0.0)


def test_a_question_without_an_answer(tmp_path: Path) -> None:
    context = "Ada came."
    row = one_question(
        tmp_path, question(context), prediction(context, "Ada", text="", no_answer_score=0.4)
    )
    assert row["answers"] == []
    assert row["predicted"] == ""
    assert row["exact_match"] is True
    # What the one candidate, of probability 0.5, leaves.
    assert row["probability"] == 0.5
    assert row["no_answer"] == [0.4, 0.5]


@pytest.mark.parametrize(
    ("given", "probability", "predicted"),
    [
        # A threshold chose, or a person: the second best is as likely as it was.
        (prediction("Ada came", "Ada", "came", text="came"), 0.25, [4, 8]),
        (prediction("Ada came", "Ada", text="Somebody"), None, "Somebody"),
        (prediction("Ada came", "Ada", text=""), None, ""),
        (prediction("Ada came", text="", no_answer_score=math.inf), 1.0, ""),
        (prediction("Ada came", text="Ada"), None, "Ada"),
    ],
)
def test_probability_of_the_answer_given(
    tmp_path: Path, given: SpanPrediction, probability: float | None, predicted: Any
) -> None:
    row = one_question(tmp_path, question("Ada came", "Ada"), given)
    assert row["probability"] == probability
    assert row["predicted"] == predicted


def test_rounding_leaves_no_negative_probability(tmp_path: Path) -> None:
    best = tuple(SpanCandidate("Ada", 0, 3, 1.0, share) for share in (0.7, 0.3 + 1e-9))
    given = SpanPrediction("q", "Ada", best, -30.0)
    assert one_question(tmp_path, question("Ada", "Ada"), given)["no_answer"] == [-30.0, 0.0]


def test_answers_without_a_place_and_twice_the_same(tmp_path: Path) -> None:
    row = question("Ada came", "Ada", "Ada", "Countess Lovelace")
    assert row["answers"]["answer_start"] == [0, 0, -1]
    found = one_question(tmp_path, row, prediction("Ada came", "came"))
    assert found["answers"] == [[0, 3], "Countess Lovelace"]


def test_an_open_question_has_no_context(tmp_path: Path) -> None:
    row = question("", "Ada")
    found = one_question(tmp_path, row, SpanPrediction("q", "Ada", (), None))
    assert (found["answers"], found["predicted"], found["exact_match"]) == (["Ada"], "Ada", True)


def test_predictions_come_as_predict_spans_gives_them(tmp_path: Path) -> None:
    context = "😀 Ada came."
    examples = Dataset.from_list([question(context, "Ada")])
    features = Dataset.from_dict(
        {
            "example_id": ["q"],
            "context_starts": [[-1, 0, 2, 5, 10]],
            "context_ends": [[-1, 1, 5, 10, 11]],
        }
    )
    start = np.array([[1.0, 0.0, 5.0, 0.0, 0.0]])
    given = predict_spans(examples, features, start, start)
    path = tmp_path / "page.html"
    write_question_answering_errors(examples, given, path)
    page = Page(path.read_text(encoding="utf-8"))
    (row,) = page.data["questions"]
    assert units(context, *row["predicted"]) == "Ada"
    assert row["exact_match"] is True
    shares = [share for *_, share in row["n_best"]]
    assert sum(shares) + row["no_answer"][1] == pytest.approx(1, abs=1e-3)


def test_ten_thousand_questions_are_a_small_file(tmp_path: Path) -> None:
    contexts = [f"Article {number}. " + "Some words of it. " * 50 for number in range(500)]
    texts = [f"Article {number}" for number in range(500)]
    rows, given = [], []
    for number in range(10_000):
        context, text = contexts[number % 500], texts[number % 500]
        rows.append(question(context, text, id=str(number)))
        best = tuple(SpanCandidate(text, 0, len(text), 1.25 - n, 0.05) for n in range(20))
        given.append(SpanPrediction(str(number), text, best, -2.5))
    page = questions_page(tmp_path, rows, given)
    # 9 MB of contexts if each question had its own; 20 candidates a question are the most of it.
    assert len(page.source) < 7_500_000
    assert len(page.data["contexts"]) == 500


GOOD_ROW = question("Ada came home", "Ada")
GOOD_PREDICTION = prediction("Ada came home", "Ada")


@pytest.mark.parametrize(
    ("rows", "given", "message"),
    [
        ([], [], "no questions to show"),
        ([GOOD_ROW], [], "1 questions and 0 predictions"),
        ([GOOD_ROW], [GOOD_PREDICTION] * 2, "1 questions and 2 predictions"),
        (
            [GOOD_ROW],
            [dataclasses.replace(GOOD_PREDICTION, id="other")],
            "prediction 0 is for the question 'other' and example 0 has the id 'q'",
        ),
        ([GOOD_ROW], ["Ada"], "prediction 0 is a str and must be a SpanPrediction"),
        ([{**GOOD_ROW, "context": None}], [GOOD_PREDICTION], "example 0 has the context None"),
        (
            [{key: GOOD_ROW[key] for key in ("id", "context", "answers")}],
            [GOOD_PREDICTION],
            "example 0 has the question None",
        ),
        ([{**GOOD_ROW, "answers": ["Ada"]}], [GOOD_PREDICTION], "must be as in SQuAD"),
        (
            [{**GOOD_ROW, "answers": {"text": ["Ada"], "answer_start": []}}],
            [GOOD_PREDICTION],
            "1 answers and 0 places",
        ),
        (
            [{**GOOD_ROW, "answers": {"text": ["Ada"], "answer_start": [1]}}],
            [GOOD_PREDICTION],
            "the answer 'Ada' must be what the context has at characters 1 to 4, and that is 'da '",
        ),
        (
            [{**GOOD_ROW, "answers": {"text": ["Ada"], "answer_start": [-13]}}],
            [GOOD_PREDICTION],
            "the answer 'Ada'",
        ),
        (
            [{**GOOD_ROW, "answers": {"text": [""], "answer_start": [3]}}],
            [GOOD_PREDICTION],
            "the answer ''",
        ),
        (
            [GOOD_ROW],
            [SpanPrediction("q", "Ada", (SpanCandidate("Ada", 4, 8, 1.0, 1.0),), None)],
            "the candidate 'Ada' .* that is 'came'",
        ),
        (
            [GOOD_ROW],
            [SpanPrediction("q", "Ada", (SpanCandidate("Ada", -1, 3, 1.0, 1.0),), None)],
            "at characters -1 to 3",
        ),
        (
            [GOOD_ROW],
            [SpanPrediction("q", "Ada", (SpanCandidate("Ada", 0, 3, 1.0, 1.5),), None)],
            "the probability 1.5",
        ),
        (
            [GOOD_ROW],
            [SpanPrediction("q", "Ada", (SpanCandidate("Ada", 0, 3, 1.0, math.nan),), None)],
            "the probability nan",
        ),
        (
            [GOOD_ROW],
            [SpanPrediction("q", "Ada", (SpanCandidate("Ada", 0, 3, math.inf, 1.0),), None)],
            "the score inf",
        ),
        (
            [GOOD_ROW],
            [dataclasses.replace(GOOD_PREDICTION, no_answer_score=math.nan)],
            "no_answer_score nan",
        ),
    ],
)
def test_wrong_questions_are_refused(
    tmp_path: Path, rows: list[Any], given: list[Any], message: str
) -> None:
    path = tmp_path / "page.html"
    path.write_text("what was there before")
    with pytest.raises(ValueError, match=message):
        write_question_answering_errors(rows, given, path)
    assert path.read_text() == "what was there before"
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]


# --- natural language inference ---

PAIRS = [
    {"premise": "A man sleeps.", "hypothesis": "A man does not sleep.", "label": 2},
    {"premise": "Every dog barks.", "hypothesis": "A dog barks.", "label": 0},
    {"premise": "She sings.", "hypothesis": "She sings.", "label": -1},
    {"premise": "A boy runs.", "hypothesis": "A boy runs home.", "label": 1},
]
SHARES = np.array([[0.1, 0.2, 0.7], [0.25, 0.7, 0.05], [0.6, 0.3, 0.1], [0.2, 0.5, 0.3]])


def pairs_page(tmp_path: Path, *arguments: Any, **options: Any) -> Page:
    path = tmp_path / "pairs.html"
    assert write_inference_errors(*arguments, path, **options) == path
    return Page(path.read_text(encoding="utf-8"))


def dataset(rows: list[dict[str, Any]], names: tuple[str, ...] = LABELS) -> Dataset:
    return Dataset.from_list(rows).cast_column("label", ClassLabel(names=list(names)))


def sliced(page: Page) -> list[set[str]]:
    """The names of the slices of each pair."""
    names = page.data["slices"]
    return [{names[number] for number in row["slices"]} for row in page.data["pairs"]]


def test_pairs_are_what_was_given(tmp_path: Path) -> None:
    rows = [{**row, "id": number} for number, row in enumerate(PAIRS)]
    page = pairs_page(tmp_path, rows, SHARES, title="A title")
    found = page.data["pairs"]
    for row, shown, share in zip(rows, found, SHARES.tolist(), strict=True):
        assert {name: shown[name] for name in ("premise", "hypothesis", "label")} == {
            name: row[name] for name in ("premise", "hypothesis", "label")
        }
        assert shown["id"] == str(row["id"])
        assert shown["probabilities"] == share
    assert [row["predicted"] for row in found] == [2, 1, 0, 1]
    assert page.data["labels"] == page.data["columns"] == list(LABELS)
    assert '<h1 dir="auto">A title</h1>' in page.source
    assert is_self_contained(page)


def test_pairs_without_an_id_are_numbered(tmp_path: Path) -> None:
    page = pairs_page(tmp_path, PAIRS, SHARES)
    assert [row["id"] for row in page.data["pairs"]] == ["row 0", "row 1", "row 2", "row 3"]


@pytest.mark.parametrize("as_rows", [list, dataset], ids=["rows", "dataset"])
def test_slices_are_those_of_the_evaluation(
    tmp_path: Path, as_rows: Callable[[list[dict[str, Any]]], Any]
) -> None:
    rows = [
        {**row, "genre": genre, "phenomena": phenomena, "label": max(row["label"], 0)}
        for row, genre, phenomena in zip(
            PAIRS, ("fiction", None, "travel", "fiction"), ([], ["a", "b"], ["b"], []), strict=True
        )
    ]
    page = pairs_page(tmp_path, as_rows(rows), SHARES)
    expected: list[set[str]] = [set() for _ in rows]
    for group, slices in slice_masks(dataset(rows)).items():
        for name, mask in slices.items():
            for row in np.flatnonzero(mask):
                expected[row].add(f"{group}: {name}")
    assert sliced(page) == expected
    assert {"negation: in the hypothesis only", "genre: fiction"} <= expected[0]
    assert {"phenomena: a", "phenomena: b", "genre: fiction"} & expected[1] == {
        "phenomena: a",
        "phenomena: b",
    }


def test_without_a_label_a_pair_is_in_no_slice_of_labels(tmp_path: Path) -> None:
    page = pairs_page(tmp_path, [{**row, "heuristic": "none"} for row in PAIRS], SHARES)
    unlabelled = sliced(page)[2]
    assert "lexical overlap: all words" in unlabelled
    assert "heuristic: none" in unlabelled
    assert not [name for name in unlabelled if "entail" in name or "gold label" in name]
    assert "heuristic and gold label: none, entailment" in sliced(page)[1]


def test_slices_of_ones_own(tmp_path: Path) -> None:
    mask = np.array([True, False, True, False])
    page = pairs_page(tmp_path, PAIRS, SHARES, slices={"short": mask, "empty": [False] * 4})
    assert page.data["slices"] == ["short", "empty"]
    assert sliced(page) == [{"short"}, set(), {"short"}, set()]
    page = pairs_page(tmp_path, PAIRS, SHARES, slices={"length": {"short": mask, "long": ~mask}})
    assert sliced(page) == [{"length: short"}, {"length: long"}] * 2
    assert pairs_page(tmp_path, PAIRS, SHARES, slices={}).data["slices"] == []


def test_three_probabilities_of_two_labels_count_as_in_the_evaluation(tmp_path: Path) -> None:
    # The first is where the order matters: entailment is likeliest, yet less likely than the rest.
    shares = np.array([[0.4, 0.3, 0.3], [0.2, 0.3, 0.5], [0.2, 0.5, 0.3], [0.9, 0.1, 0.0]])
    rows = [{**row, "label": number % 2} for number, row in enumerate(PAIRS)]
    page = pairs_page(tmp_path, rows, shares, names=TWO_WAY_LABELS)
    found = page.data["pairs"]
    assert [row["predicted"] for row in found] == [0, 1, 1, 0]
    assert page.data["columns"] == list(LABELS)
    right = np.mean([row["predicted"] == row["label"] for row in found])
    result = evaluate_inference(dataset(rows, TWO_WAY_LABELS), shares, num_resamples=1)
    assert result["accuracy"] == 100 * right


WRITTEN = np.array([2, -1, 0, 0])


@pytest.mark.parametrize("given", [WRITTEN, WRITTEN.tolist(), WRITTEN.astype(np.int8)])
def test_labels_that_were_written_have_no_probabilities(tmp_path: Path, given: Any) -> None:
    page = pairs_page(tmp_path, PAIRS, given)
    found = page.data["pairs"]
    assert [row["predicted"] for row in found] == [2, -1, 0, 0]
    assert [row["probabilities"] for row in found] == [[], [], [], []]
    assert page.data["columns"] == []
    assert sliced(page) == sliced(pairs_page(tmp_path, PAIRS, SHARES))
    assert "they have no probabilities; a text that is no label is wrong" in page.source
    assert "they have no probabilities" not in pairs_page(tmp_path, PAIRS, SHARES).source
    assert is_self_contained(page)
    # As the evaluation counts them.
    scored = [PAIRS[number] for number in (0, 1, 3)]
    result = evaluate_inference(dataset(scored), WRITTEN[[0, 1, 3]], num_resamples=1)
    right = [row["predicted"] == row["label"] for row in found if row["label"] >= 0]
    assert result["accuracy"] == pytest.approx(100 * np.mean(right))


def test_labels_of_another_kind(tmp_path: Path) -> None:
    names = ("no", "yes")
    rows = [{**row, "label": number % 2} for number, row in enumerate(PAIRS)]
    page = pairs_page(tmp_path, rows, [[0.5, 0.5]] * 4, names=names, slices={})
    assert page.data["columns"] == ["no", "yes"]
    with pytest.raises(ValueError, match="must begin with 'entailment' for the default slices"):
        pairs_page(tmp_path, rows, [[0.5, 0.5]] * 4, names=names)


@pytest.mark.parametrize("text", [*HOSTILE, "half of one: \ud83d"])
def test_texts_of_pairs_stay_text(tmp_path: Path, text: str) -> None:
    plain = pairs_page(tmp_path, PAIRS, SHARES)
    row = {"id": text, "premise": text, "hypothesis": text, "label": 0}
    page = pairs_page(tmp_path, [row], SHARES[:1], title=text)
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in plain.elements]
    (found,) = page.data["pairs"]
    assert found["id"] == found["premise"] == found["hypothesis"] == text
    mask = np.array([True])
    page = pairs_page(tmp_path, [row], SHARES[:1], slices={text: mask}, names=(text, "b", "c"))
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in plain.elements]
    assert page.data["slices"] == page.data["labels"][:1] == [text]


@pytest.mark.parametrize(
    ("rows", "shares", "options", "message"),
    [
        ([], np.zeros((0, 3)), {}, "no pairs to show"),
        (PAIRS, SHARES[:3], {}, "4 pairs and 3 rows of probabilities"),
        (PAIRS, SHARES[:, :2], {}, r"shape \[4, 2\] and must have \[4, 3\]"),
        (PAIRS, SHARES[:, 0], {}, r"shape \[4\]"),
        (PAIRS, np.float64(1), {}, "4 pairs and 0 rows"),
        (PAIRS, np.log(SHARES), {}, "row 0 has the probabilities"),
        (PAIRS, SHARES * [[1], [2], [1], [1]], {}, "row 1 has the probabilities"),
        (PAIRS, np.where(SHARES == 0.6, np.nan, SHARES), {}, "row 2 has the probabilities"),
        (PAIRS, WRITTEN[:3], {}, "4 pairs and 3 predicted labels"),
        (PAIRS, WRITTEN + 1, {}, r"prediction 0 is the label 3, .* \(entailment, neutral, contra"),
        (PAIRS, WRITTEN - 1, {}, "prediction 1 is the label -2, .* or -1 for a text that is none"),
        (PAIRS, WRITTEN * 1.0, {}, r"shape \[4\]"),
        (PAIRS, WRITTEN >= 0, {}, r"shape \[4\]"),
        (PAIRS, WRITTEN, {"names": ("a", "b", "a"), "slices": {}}, "each once"),
        ([{**PAIRS[0], "label": 3}], SHARES[:1], {}, "example 0 has the label 3"),
        ([{**PAIRS[0], "label": -2}], SHARES[:1], {}, "example 0 has the label -2"),
        ([{**PAIRS[0], "label": "neutral"}], SHARES[:1], {}, "has the label 'neutral'"),
        ([{**PAIRS[0], "label": True}], SHARES[:1], {}, "has the label True"),
        ([{**PAIRS[0], "label": 1.0}], SHARES[:1], {}, "has the label 1.0"),
        ([{**PAIRS[0], "premise": 3}], SHARES[:1], {}, "example 0 has the premise 3"),
        (PAIRS, SHARES, {"names": ("a", "b", "a"), "slices": {}}, "each once"),
        (PAIRS, SHARES, {"slices": {"s": [True]}}, r"slice 's' .* shape \[1\]; .* shape \[4\]"),
        (PAIRS, SHARES, {"slices": {"s": [0, 1, 0, 1]}}, "slice 's' is of type int"),
        (PAIRS, SHARES, {"slices": {"g": {"s": [True]}}}, "slice 'g: s'"),
    ],
)
def test_wrong_pairs_are_refused(
    tmp_path: Path, rows: list[Any], shares: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_inference_errors(rows, shares, tmp_path / "page.html", **options)
    assert list(tmp_path.iterdir()) == []


# --- the file ---


@pytest.mark.parametrize("name", ["folder", "file/page.html", "x" * 300])
def test_a_path_that_cannot_be_written_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match="cannot be written") as caught:
        write_inference_errors(PAIRS, SHARES, tmp_path / name)
    assert name in str(caught.value)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "folder"]


def test_parent_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "page.html"
    write_inference_errors(PAIRS, SHARES, str(path))
    assert [file.name for file in path.parent.iterdir()] == ["page.html"]


def test_progress_is_not_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_inference_errors(PAIRS, SHARES, tmp_path / "page.html")
    assert capfd.readouterr() == ("", "")


def test_columns_beside_text_do_no_harm(tmp_path: Path) -> None:
    features = Features(
        {"premise": Value("string"), "hypothesis": Value("string"), "label": Value("int64")}
    )
    rows = [
        {**row, "mixed": mixed, "numbers": [1.5], "genre": None}
        for row, mixed in zip(PAIRS, (1, "two", None, [3]), strict=True)
    ]
    plain = pairs_page(tmp_path, Dataset.from_list(PAIRS, features=features), SHARES)
    assert pairs_page(tmp_path, rows, SHARES).data == plain.data


# --- the pages at work ---

# Set by a script at the end of the page, after what a person would do.
RESULT = re.compile(r'<pre id="result">(.*?)</pre>', re.DOTALL)


def played(tmp_path: Path, page: Path, script: str) -> Any:
    """Open a page in a browser, run a script there, and give what it returns."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium to open the page in")
    driver = (
        "<script>\n"
        "window.$ = (one) => document.querySelector(one);\n"
        "window.all = (one) => [...document.querySelectorAll(one)];\n"
        "window.set = (name, value) => { const node = $(`[name=${name}]`); node.value = value;\n"
        "  node.dispatchEvent(new Event(name === 'search' ? 'input' : 'change')); };\n"
        "window.press = (text) => all('[data-facet] button')\n"
        "  .find((one) => one.textContent.startsWith(text + ' (')).click();\n"
        "window.summary = () => $('#summary').textContent;\n"
        "window.ids = () => all('article').map((one) => one.dataset.id ?? +one.dataset.row);\n"
        "let result;\n"
        f"try {{ result = (() => {{ {script} }})(); }}\n"
        "catch (error) { result = String(error); }\n"
        "const box = document.createElement('pre'); box.id = 'result';\n"
        # base64 of UTF-8 comes through any serialisation as it is.
        "box.textContent = btoa(String.fromCharCode(...new TextEncoder().encode(\n"
        "  JSON.stringify(result))));\n"
        "document.body.append(box);\n</script></body>"
    )
    text = page.read_text(encoding="utf-8")
    assert text.count("</body>") == 1
    driven = tmp_path / "driven.html"
    driven.write_text(text.replace("</body>", driver), encoding="utf-8")
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
        "--disable-background-networking --disable-component-update --dump-dom"
    )
    finished = subprocess.run(
        [browser, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", driven.as_uri()],
        check=True,
        capture_output=True,
        text=True,
        # Long, for a machine under load; within pytest's own limit, so that it is the one named.
        timeout=240,
    )
    assert "<title>taken" not in finished.stdout
    found = RESULT.search(finished.stdout)
    assert found, finished.stdout[-2000:]
    return json.loads(base64.b64decode(found[1]))


def played_questions(tmp_path: Path) -> Path:
    """45 questions over hostile and over long contexts, of every outcome."""
    context = f"😀 Ada e\u0301te\u0301 {HOSTILE[0]} {HOSTILE[1]} 👩‍👩‍👧 Ben met Carl."
    long_context = "word " * 900 + "Dora 😀 Emil " + "𝄞" * 1000
    plans: list[tuple[str, str, list[str], str, float]] = [
        ("right", context, ["Ben"], "Ben", 0.9),
        ("partly", context, ["👩‍👩‍👧 Ben"], "Ben met", 0.8),
        ("wrong", context, ["Ada e\u0301te\u0301"], "Carl", 0.7),
        ("none-right", context, [], "", 0.6),
        ("none-wrong", context, [], "Ada", 0.5),
        ("free", context, ["Ben"], "somebody", 0.0),
        ("long", long_context, ["Dora 😀"], "😀 Emil", 0.4),
    ]
    plans += [(f"more-{number:02}", context, ["Ben"], "Ben", 0.01) for number in range(38)]
    rows, given = [], []
    for name, text, answers, predicted, share in plans:
        asked = "How many came?" if name == "long" else f"Who came to {HOSTILE[1]}?"
        rows.append(question(text, *answers, id=name, question=asked))
        # "No answer" is given where the best of the others is "Carl".
        best_text = predicted if predicted in text and predicted else "Carl"
        rest = share if predicted else 1 - share
        best = (SpanCandidate(*_place(text, best_text), 2.0, rest),)
        given.append(SpanPrediction(name, predicted, best, 0.25))
    path = tmp_path / "questions.html"
    write_question_answering_errors(rows, given, path)
    return path


def _place(context: str, text: str) -> tuple[str, int, int]:
    start = context.index(text)
    return text, start, start + len(text)


@pytest.mark.slow
def test_the_page_of_questions_at_work(tmp_path: Path) -> None:
    script = """
    const marks = (id) => [...$(`article[data-id="${id}"]`).querySelectorAll('.context mark')]
      .map((one) => [one.className, one.textContent]);
    const r = { all: [summary(), ids().length, $('.pager').textContent] };
    r.marks = Object.fromEntries(['right', 'partly', 'wrong', 'none-wrong', 'free', 'long']
      .map((id) => [id, marks(id)]));
    r.text = $('article[data-id=right] .context').textContent;
    r.elements = all('article img, article script, article b').length;
    const long = $('article[data-id=long]');
    r.excerpt = long.querySelector('.context').textContent;
    long.querySelector('.more').click();
    r.whole = long.querySelector('.context').textContent;
    r.wholeMarks = marks('long');
    r.details = ['none-right', 'free'].map((id) => $(`article[data-id=${id}] dl`).textContent);
    $('.pager').lastChild.click();
    r.second = ids();
    $('.pager').lastChild.click();
    r.third = [ids(), $('.pager').lastChild.disabled];
    press('wrong');
    r.wrong = [summary(), ids(), $('.pager').hidden,
      all('[data-facet] button').map((one) => one.textContent)];
    set('gold', 'none');
    r.noGold = [summary(), ids(), all('[data-facet] button').map((one) => one.textContent)];
    $('[name=reset]').click();
    set('word', 'how many');
    r.word = [ids(), all('[name=word] option').map((one) => one.textContent)];
    $('[name=reset]').click();
    set('given', 'none');
    r.given = ids();
    $('[name=reset]').click();
    press('partly right');
    r.partly = ids();
    $('[name=reset]').click();
    set('search', 'EMIL  dora');
    r.search = ids();
    set('search', '\\u00e9t\\u00e9 <IMG');
    r.folded = summary();
    set('search', 'no such words');
    r.nothing = [summary(), $('main').textContent];
    $('[name=reset]').click();
    r.reset = [summary(), $('[name=search]').value];
    const sorted = (by) => { set('sort', by); return ids().slice(0, 8); };
    r.byF1 = sorted(1);
    r.byF1Down = sorted(2).slice(0, 2);
    r.byShare = sorted(3);
    r.byShareUp = sorted(4).slice(0, 2);
    return r;
    """
    result = played(tmp_path, played_questions(tmp_path), script)
    assert isinstance(result, dict), result
    # Right: "right", "none-right" and 38 more; by half: "partly" and "long".
    f1 = (40 + 2 * 0.5) / 45
    everything = f"45 of 45 shown: exact match {100 * 40 / 45:.1f}, F1 {100 * f1:.1f}"
    assert result["all"] == [everything, 20, "Previous1 of 3Next"]
    assert result["marks"] == {
        "right": [["both", "Ben"]],
        "partly": [["gold", "👩‍👩‍👧 "], ["both", "Ben"], ["predicted", " met"]],
        "wrong": [["gold", "Ada e\u0301te\u0301"], ["predicted", "Carl"]],
        "none-wrong": [["predicted", "Ada"]],
        "free": [["gold", "Ben"]],
        "long": [["gold", "Dora "], ["both", "😀"], ["predicted", " Emil"]],
    }
    assert HOSTILE[0] in result["text"]
    assert result["elements"] == 0
    assert 400 < len(result["excerpt"]) < 700
    # Cut between characters, not within one.
    assert not re.search("[\ud800-\udfff]", result["excerpt"])
    assert result["whole"] == "word " * 900 + "Dora 😀 Emil " + "𝄞" * 1000
    assert result["wholeMarks"] == result["marks"]["long"]
    assert result["details"][0] == "Givenno answerRightthis question has no answer"
    assert result["details"][1] == "Givensomebody (not cut out of the context)RightBen"
    assert len(result["second"]) == 20
    assert result["third"] == [[f"more-{number:02}" for number in range(33, 38)], True]
    assert result["wrong"] == [
        "3 of 45 shown: exact match 0.0, F1 0.0",
        ["wrong", "none-wrong", "free"],
        True,
        ["all (45)", "wrong (3)", "partly right (2)", "right (40)"],
    ]
    assert result["noGold"] == [
        "1 of 45 shown: exact match 0.0, F1 0.0",
        ["none-wrong"],
        ["all (2)", "wrong (1)", "partly right (0)", "right (1)"],
    ]
    assert result["word"] == [["long"], ["all (45)", "who (44)", "how many (1)"]]
    assert result["given"] == ["none-right"]
    assert result["partly"] == ["partly", "long"]
    assert result["search"] == ["long"]
    assert result["folded"].startswith("44 of 45 shown")
    assert result["nothing"] == ["0 of 45 shown", "Nothing passes all of these filters."]
    assert result["reset"] == [everything, ""]
    assert result["byF1"][:5] == ["wrong", "none-wrong", "free", "partly", "long"]
    assert result["byF1Down"] == ["right", "none-right"]
    assert result["byShare"][:6] == ["right", "partly", "wrong", "none-right", "none-wrong", "long"]
    # A probability that is not known comes last either way.
    assert result["byShareUp"] == ["more-00", "more-01"]


@pytest.mark.slow
def test_the_best_answers_open(tmp_path: Path) -> None:
    script = """
    const details = $('article[data-id=none-right] details');
    const before = details.querySelectorAll('td').length;
    details.open = true;
    details.dispatchEvent(new Event('toggle'));
    return [before, [...details.querySelectorAll('tr')].slice(1)
      .map((row) => [...row.children].map((cell) => cell.textContent))];
    """
    before, table = played(tmp_path, played_questions(tmp_path), script)
    assert before == 0
    assert table == [
        ["1", "no answer", "2.25", "60.0 %", ""],
        ["2", "Carl", "2.00", "40.0 %", ""],
    ]


def played_pairs(tmp_path: Path) -> Path:
    rows = [{**row, "id": f"{HOSTILE[1]}{number}"} for number, row in enumerate(PAIRS)]
    path = tmp_path / "pairs.html"
    mask = np.array([True, True, False, False])
    write_inference_errors(rows, SHARES, path, slices={"first half": mask, HOSTILE[0]: ~mask})
    return path


@pytest.mark.slow
def test_the_page_of_pairs_at_work(tmp_path: Path) -> None:
    script = """
    const cells = () => all('.matrix button').map((one) => one.textContent);
    const pressed = () => all('.matrix [aria-pressed=true]').map((one) => one.title);
    const r = { all: [summary(), ids(), cells()] };
    r.elements = all('article img, article script').length;
    r.bars = all('article:first-child .bars > span').map((one) => one.textContent.trim()
      || one.firstChild.style.width);
    r.kinds = all('article').map((one) => one.className);
    all('.matrix button')[1].click();
    r.cell = [summary(), ids(), cells(), pressed()];
    r.chosen = [$('[name=gold]').value, $('[name=predicted]').value];
    all('.matrix button')[1].click();
    r.again = [ids(), pressed()];
    press('right');
    r.right = [summary(), ids(), cells()];
    press('not scored');
    r.unscored = [summary(), ids()];
    $('[name=reset]').click();
    set('slice', '1');
    r.slice = [summary(), ids(), cells(), all('[name=slice] option').map((one) => one.textContent)];
    $('[name=reset]').click();
    $('.chips button').click();
    r.chip = [ids(), $('[name=slice]').value, $('.chips button').ariaPressed];
    $('.chips button').click();
    r.unchip = ids();
    set('gold', '-1');
    r.unknown = ids();
    $('[name=reset]').click();
    set('predicted', '1');
    r.predicted = ids();
    set('search', 'every');
    r.search = [ids(), cells()];
    $('[name=reset]').click();
    const sorted = (by) => { set('sort', by); return ids(); };
    r.sorts = [1, 2, 3, 4].map(sorted);
    return r;
    """
    result = played(tmp_path, played_pairs(tmp_path), script)
    assert isinstance(result, dict), result
    # Rows gold, the last one without a label; columns predicted.
    everything = ["0", "1", "0", "0", "1", "0", "0", "0", "1", "1", "0", "0"]
    accuracy = "4 of 4 shown: accuracy 66.7 % (2 of 3 right)"
    assert result["all"] == [accuracy, [0, 1, 2, 3], everything]
    assert result["elements"] == 0
    assert result["bars"] == [
        *("entailment", "10%", "10.0 %"),
        *("neutral", "20%", "20.0 %"),
        *("contradiction gold, predicted", "70%", "70.0 %"),
    ]
    assert result["kinds"] == ["right", "wrong", "unknown", "right"]
    wrong = "1 of 4 shown: accuracy 0.0 % (0 of 1 right)"
    chosen = ["gold entailment, predicted neutral"]
    # The table goes on to show what the other cells would.
    assert result["cell"] == [wrong, [1], everything, chosen]
    assert result["chosen"] == ["0", "1"]
    assert result["again"] == [[0, 1, 2, 3], []]
    right = ["0", "0", "0", "0", "1", "0", "0", "0", "1", "0", "0", "0"]
    assert result["right"] == ["2 of 4 shown: accuracy 100.0 % (2 of 2 right)", [0, 3], right]
    assert result["unscored"] == ["1 of 4 shown: none has a gold label", [2]]
    assert result["slice"] == [
        "2 of 4 shown: accuracy 100.0 % (1 of 1 right)",
        [2, 3],
        ["0", "0", "0", "0", "1", "0", "0", "0", "0", "1", "0", "0"],
        ["all (4)", "first half (2)", f"{HOSTILE[0]} (2)"],
    ]
    assert result["chip"] == [[0, 1], "0", "true"]
    assert result["unchip"] == [0, 1, 2, 3]
    assert result["unknown"] == [2]
    assert result["predicted"] == [1, 3]
    assert result["search"] == [[1], ["0", "1", *["0"] * 10]]
    assert result["sorts"] == [[0, 1, 2, 3], [3, 2, 0, 1], [1, 3, 0, 2], [0, 3, 1, 2]]


def test_the_contexts_of_these_tests_are_decomposed() -> None:
    # Else the search across normal forms, above, would test nothing.
    assert unicodedata.normalize("NFC", "e\u0301te\u0301") != "e\u0301te\u0301"


@pytest.mark.slow
def test_the_page_of_written_labels_at_work(tmp_path: Path) -> None:
    script = """
    const texts = (one) => all(one).map((node) => node.textContent);
    const r = { all: [summary(), ids(), texts('.matrix button')] };
    r.headings = texts('article h2');
    r.columns = texts('.matrix th[scope=col]');
    r.bars = all('.bars').length;
    r.options = [texts('[name=predicted] option'), texts('[name=sort] option')];
    set('predicted', '-1');
    r.none = [summary(), ids()];
    $('[name=reset]').click();
    all('.matrix button')[3].click();
    r.cell = [ids(), $('[name=predicted]').value,
      all('.matrix [aria-pressed=true]').map((one) => one.title)];
    return r;
    """
    path = tmp_path / "pairs.html"
    write_inference_errors(PAIRS, WRITTEN, path, slices={})
    result = played(tmp_path, path, script)
    assert isinstance(result, dict), result
    # A row a gold label, unknown last; a column a prediction, none last.
    counts = ["0", "0", "0", "1", "1", "0", "0", "0", "0", "0", "1", "0", "1", "0", "0", "0"]
    assert result["all"] == [
        "4 of 4 shown: accuracy 33.3 % (1 of 3 right)",
        [0, 1, 2, 3],
        counts,
    ]
    assert result["headings"] == [
        "contradiction",
        "entailment, predicted no label",
        "no gold label, predicted entailment",
        "neutral, predicted entailment",
    ]
    assert result["columns"] == [*LABELS, "no label"]
    assert result["bars"] == 0
    predicted, sorts = result["options"]
    assert predicted[-1] == "no label (1)"
    assert sorts == ["order of the data"]
    assert result["none"] == ["1 of 4 shown: accuracy 0.0 % (0 of 1 right)", [1]]
    assert result["cell"] == [[1], "-1", ["gold entailment, predicted no label"]]
