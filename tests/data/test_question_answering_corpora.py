"""Every way in to questions, what is mended, skipped and counted, and every refusal."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from vanilla_transformer.data.question_answering_corpora import (
    CLOZE_RATES,
    ClozeRates,
    QuestionsReport,
    cloze_questions,
    load_question_answering,
)

CONTEXT = "Zoë met Émile in Łódź 😀 in 1990. Łódź was cold; a cold Łódź."
ROW = {
    "id": "a",
    "title": "Cities",
    "context": CONTEXT,
    "question": "Where did Zoë meet Émile?",
    "answers": {"text": ["Łódź"], "answer_start": [17]},
}
UNANSWERABLE = ROW | {"id": "b", "answers": {"text": [], "answer_start": []}}
SQUAD_FILE = {
    "version": "v2.0",
    "data": [
        {
            "title": "Cities",
            "paragraphs": [
                {
                    "context": CONTEXT,
                    "qas": [
                        {
                            "id": "a",
                            "question": ROW["question"],
                            "answers": [{"text": "Łódź", "answer_start": 17}],
                            "is_impossible": False,
                        },
                        {
                            "id": "b",
                            "question": ROW["question"],
                            "answers": [],
                            "plausible_answers": [{"text": "cold", "answer_start": 42}],
                            "is_impossible": True,
                        },
                    ],
                }
            ],
        }
    ],
}

Load = Callable[..., tuple[list[dict[str, Any]], QuestionsReport]]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Load with a cache of the test's own; a list of rows goes through a JSON-lines file."""

    def load_rows(corpus: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(corpus, list):
            path = tmp_path / "rows.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in corpus), encoding="utf-8")
            corpus = path
        dataset, report = load_question_answering(
            corpus, *args, cache_dir=tmp_path / "cache", **kwargs
        )
        return list(dataset), report

    return load_rows


def answer(row: dict[str, Any]) -> tuple[str, str, int]:
    """The first answer, what the context has at its offset, and the offset."""
    text, start = row["answers"]["text"][0], row["answers"]["answer_start"][0]
    return text, row["context"][start : start + len(text)], start


# Ways in


def test_published_squad_files_and_the_hub_schema_come_out_alike(
    load: Load, tmp_path: Path
) -> None:
    (tmp_path / "dev-v2.0.json").write_text(json.dumps(SQUAD_FILE, indent=1), encoding="utf-8")
    pq.write_table(pa.Table.from_pylist([ROW, UNANSWERABLE]), tmp_path / "dev.parquet")
    (tmp_path / "list.json").write_text(json.dumps([ROW, UNANSWERABLE]), encoding="utf-8")
    (tmp_path / "lines.json").write_text(
        json.dumps(ROW) + "\n" + json.dumps(UNANSWERABLE), encoding="utf-8"
    )
    for name in ("dev-v2.0.json", "dev.parquet", "list.json", "lines.json"):
        rows, report = load(tmp_path / name)
        assert rows == [ROW, UNANSWERABLE], name
        assert (report.read, report.kept, report.skipped, report.mended) == (2, 2, {}, {})
    assert load([ROW, UNANSWERABLE])[0] == [ROW, UNANSWERABLE]


def test_folder_gives_the_split_asked_for(load: Load, tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for shard, row in enumerate((ROW, UNANSWERABLE)):
        table = pa.Table.from_pylist([row])
        pq.write_table(table, folder / f"train-0000{shard}-of-00002.parquet")
    (folder / "xquad.de.json").write_text(json.dumps(SQUAD_FILE), encoding="utf-8")
    assert [row["id"] for row in load(folder)[0]] == ["a", "b"]
    assert len(load(folder, "xquad.de")[0]) == 2
    with pytest.raises(ValueError, match=r"has no split 'test'; it has train, xquad\.de"):
        load(folder, "test")
    (folder / "train.jsonl").write_text(json.dumps(ROW), encoding="utf-8")
    with pytest.raises(ValueError, match=r"train as \.jsonl, \.parquet; name the file"):
        load(folder)


def test_save_to_disk_folder(load: Load, tmp_path: Path) -> None:
    DatasetDict({"dev": Dataset.from_list([ROW])}).save_to_disk(tmp_path / "saved")
    assert load(tmp_path / "saved", "dev")[0] == [ROW]
    with pytest.raises(ValueError, match="has no split 'train'; it has dev"):
        load(tmp_path / "saved")


@pytest.mark.parametrize(
    ("corpus", "expected"),
    [
        ("squad", ("rajpurkar/squad", {})),
        ("squad_v2", ("rajpurkar/squad_v2", {})),
        ("nq_open", ("google-research-datasets/nq_open", {})),
        ("trivia_qa", ("mandarjoshi/trivia_qa", {"name": "rc"})),
        ("xquad", ("google/xquad", {"name": "xquad.en"})),
        ("someone/set", ("someone/set", {})),
    ],
)
def test_hub_ids(
    load: Load, monkeypatch: pytest.MonkeyPatch, corpus: str, expected: tuple[str, dict[str, str]]
) -> None:
    asked = []

    def load_dataset(hub_id: str, **options: Any) -> Dataset:
        asked.append((hub_id, {key: options[key] for key in ("name",) if key in options}))
        return Dataset.from_list([ROW])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load(corpus, "validation")[0] == [ROW]
    load(corpus, "validation", name="own")
    assert asked == [expected, (expected[0], {"name": "own"})]


def test_tiny_world_has_questions_of_its_own_in_each_split(load: Load) -> None:
    rows, report = load("tiny_world", "test", limit=30)
    assert (len(rows), report.kept, report.mended, report.skipped) == (30, 30, {}, {})
    assert all(text == found for text, found, _ in map(answer, rows))
    assert not {row["context"] for row in rows} & {
        row["context"] for row in load("tiny_world", limit=300)[0]
    }
    with pytest.raises(ValueError, match="tiny_world has no split 'dev'"):
        load("tiny_world", "dev")


def test_open_questions_have_no_context_and_unlocated_answers(load: Load) -> None:
    rows, report = load([{"question": "who?", "answer": ["Ada", "Lovelace"]}, {**ROW, "id": "x"}])
    assert rows[0] == {
        "id": "1",
        "title": "",
        "context": "",
        "question": "who?",
        "answers": {"text": ["Ada", "Lovelace"], "answer_start": [-1, -1]},
    }
    assert report.kept == 2


TRIVIA = {
    "question": "Who was first?",
    "question_id": "q1",
    "answer": {"value": "Ada", "aliases": ["Ada", "Countess İda", "Lovelace"]},
    "entity_pages": {
        "filename": ["one.txt"],
        "title": ["One"],
        "wiki_context": ["İn Canada LOVELACE, that is ADA, and Ada."],
    },
    "search_results": {
        "filename": ["two.txt", "three.txt", "four.txt"],
        "title": ["Two", "Three", "Four"],
        "search_context": ["Canada only.", "ada it was", "Lovelace of Canada"],
    },
}


def test_trivia_has_a_row_for_each_document_with_the_answer_as_it_is_spelt_there(
    load: Load,
) -> None:
    unpublished = {**TRIVIA, "answer": {"value": "<unk>", "aliases": []}, "question_id": "q2"}
    rows, report = load([TRIVIA, unpublished])
    assert [row["id"] for row in rows] == ["q1--one.txt", "q1--three.txt", "q1--four.txt"]
    # Whole words, in any case, in their order; "İ" has two characters in lower case.
    assert rows[0]["answers"]["text"] == ["LOVELACE", "ADA", "Countess İda"]
    assert answer(rows[0])[:2] == ("LOVELACE", "LOVELACE")
    assert rows[0]["answers"]["answer_start"] == [10, 28, -1]
    assert rows[1]["answers"]["text"] == ["ada", "Countess İda", "Lovelace"]
    # "Ada" is in "Canada", but not as a word.
    assert rows[2]["answers"] == {
        "text": ["Lovelace", "Ada", "Countess İda"],
        "answer_start": [0, -1, -1],
    }
    assert (report.read, report.mended) == (8, {})
    assert report.skipped == {"answer not in the context": 1, "answer not published": 4}


def test_trivia_without_documents_is_open(load: Load) -> None:
    empty = {"filename": [], "title": [], "wiki_context": []}
    rows, _ = load([{**TRIVIA, "entity_pages": empty, "search_results": {}}])
    assert [(row["id"], row["context"]) for row in rows] == [("q1", "")]
    assert rows[0]["answers"]["text"] == ["Ada", "Countess İda", "Lovelace"]


def test_limit_counts_usable_questions(load: Load) -> None:
    rows, report = load([{**ROW, "question": " "}, ROW, UNANSWERABLE], limit=1)
    assert ([row["id"] for row in rows], report.read) == (["a"], 2)


def test_report_comes_back_from_the_cache(load: Load) -> None:
    questions = [ROW, {**ROW, "id": "z", "answers": {"text": ["cold"], "answer_start": [41]}}]
    _, first = load(questions)
    _, second = load(questions)
    assert first == second
    assert isinstance(second, QuestionsReport)
    assert second.mended == {"wrong offset: nearest occurrence taken": 1}


# What is mended


UTF8_START = len(CONTEXT[:17].encode())
SECOND = CONTEXT.index("Łódź", 18)
UTF16_START = len(CONTEXT[:SECOND].encode("utf-16-le")) // 2


@pytest.mark.parametrize(
    ("text", "start", "expected", "rule"),
    [
        ("Łódź", 17, 17, None),
        ("Łódź", UTF8_START, 17, "offset in UTF-8 bytes"),
        ("Łódź", UTF16_START, SECOND, "offset in UTF-16 units"),
        ("Łódź", 15, 17, "wrong offset: nearest occurrence taken"),
        ("Łódź", 36, SECOND, "wrong offset: nearest occurrence taken"),
        ("Łódź", 99_999, CONTEXT.rindex("Łódź"), "wrong offset: nearest occurrence taken"),
        ("Łódź", -7, 17, "wrong offset: nearest occurrence taken"),
        ("Łódź", None, 17, "no offset: first occurrence taken"),
        # Not the "a" of "was", which comes first.
        ("a", -1, CONTEXT.index(" a ") + 1, "no offset: first occurrence taken"),
        ("ol", None, CONTEXT.index("ol"), "no offset: first occurrence taken"),
        (" Łódź ", 16, 17, "blanks around the answer taken off"),
    ],
)
def test_offsets_are_mended_by_a_counted_rule(
    load: Load, text: str, start: int | None, expected: int, rule: str | None
) -> None:
    rows, report = load([{**ROW, "answers": {"text": [text], "answer_start": [start]}}])
    assert answer(rows[0]) == (text.strip(), text.strip(), expected)
    assert report.mended == ({rule: 1} if rule else {})
    assert all(places[0].endswith("rows.jsonl, line 1") for places in report.rows.values())


def test_byte_offset_is_not_taken_for_the_nearest_occurrence(load: Load) -> None:
    context = "é" * 30 + " no " + "x" * 24 + " no no"
    # 64 bytes, 33 characters in; the nearest occurrence by characters is another one.
    rows, report = load(
        [{**ROW, "context": context, "answers": {"text": ["no"], "answer_start": [61]}}]
    )
    assert answer(rows[0])[2] == 31
    assert report.mended == {"offset in UTF-8 bytes": 1}


def test_answer_absent_beside_one_that_is_there_is_kept_for_scoring_only(load: Load) -> None:
    answers = {"text": ["Paris", "Łódź"], "answer_start": [17, 17]}
    rows, report = load([{**ROW, "answers": answers}])
    assert rows[0]["answers"] == {"text": ["Łódź", "Paris"], "answer_start": [17, -1]}
    assert report.mended == {"answer not in the context beside others that are": 1}


# What is skipped


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"answers": {"text": ["Paris"], "answer_start": [0]}}, "answer not in the context"),
        # Composed and decomposed letters are different characters.
        ({"answers": {"text": ["Zoe\u0308"], "answer_start": [0]}}, "answer not in the context"),
        ({"question": " \n"}, "empty question"),
        ({"question": None}, "empty question"),
        ({"context": "\u00a0 "}, "empty context"),
        ({"answers": {"text": [" "], "answer_start": [3]}}, "empty answer"),
        ({"id": "good"}, "id that came before"),
        ({"is_impossible": True}, "is_impossible, and an answer"),
        ({"answers": [], "is_impossible": False}, "answer not published"),
    ],
)
def test_bad_rows_are_skipped_counted_and_named(
    load: Load, change: dict[str, Any], reason: str
) -> None:
    rows, report = load([{**ROW, "id": "good"}, {**ROW, **change}])
    assert [row["id"] for row in rows] == ["good"]
    assert (report.read, report.kept, report.skipped, report.mended) == (2, 1, {reason: 1}, {})
    assert [place.rsplit("/")[-1] for place in report.rows[reason]] == ["rows.jsonl, line 2"]


def test_questions_to_predict_need_no_answers(load: Load) -> None:
    bare = {name: value for name, value in ROW.items() if name not in ("answers", "answer")}
    rows = [
        {**bare, "id": "none"},
        {**bare, "id": "null", "answers": None},
        {**bare, "id": "hidden", "answers": [], "is_impossible": False},
        {**ROW, "id": "known"},
    ]
    kept, report = load(rows, keep_unanswered=True)
    assert [(row["id"], bool(row["answers"]["text"])) for row in kept] == [
        ("none", False),
        ("null", False),
        ("hidden", False),
        ("known", True),
    ]
    assert (report.kept, report.skipped) == (4, {})
    # Without the option the last is all that can be used, also from the same cache.
    kept, report = load(rows[2:])
    assert [row["id"] for row in kept] == ["known"]
    assert report.skipped == {"answer not published": 1}
    with pytest.raises(ValueError, match="no column 'answers'"):
        load(rows[:1])


def test_report_names_the_first_rows_only(load: Load) -> None:
    _, report = load([ROW] + [{**ROW, "id": str(i), "question": ""} for i in range(9)])
    assert report.skipped == {"empty question": 9}
    assert len(report.rows["empty question"]) == 5


def test_nothing_to_use_is_an_error_that_says_why(load: Load) -> None:
    with pytest.raises(ValueError, match=r"no question to use among 1 \(1 empty question\)"):
        load([{**ROW, "question": ""}])


# What is refused


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "q", "context": "c"}, "line 1: no column 'answers' among 'question'"),
        ({"context": "c", "answers": []}, "line 1: no column 'question'"),
        (ROW | {"question": 3}, "line 1: 3 is of type int"),
        (ROW | {"answers": "Łódź"}, "line 1: answers .'Łódź'. must be"),
        (ROW | {"answers": {"text": ["a", "b"], "answer_start": [0]}}, "as many texts as offsets"),
        (ROW | {"answers": {"text": ["a"], "answer_start": ["0"]}}, "answer_start .'0'. must be"),
        (ROW | {"answers": {"text": ["a"], "answer_start": [1.0]}}, "answer_start .1.0. must be"),
        (ROW | {"context": "half \ud83d"}, "half of a surrogate pair"),
    ],
)
def test_malformed_rows_are_refused_by_name(load: Load, row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load([row])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{\n "data": [\n  {"title"\n', "line 4: not JSON"),
        ('{"data": [{"title": "x"}]}', "article 0: no list 'paragraphs'"),
        ('{"data": [{"paragraphs": [{"context": "c"}]}]}', "paragraph 0: no list 'qas'"),
        ('{"data": [{"paragraphs": [{"qas": [3]}]}]}', "question 0: must be an object"),
        (
            '{"data": [{"paragraphs": [{"context": "c", "qas": [{"question": "q"}]}]}]}',
            "article 0, paragraph 0, question 0: no column 'answers'",
        ),
    ],
)
def test_broken_squad_files_are_refused_by_place(
    load: Load, tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "squad.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load(path)


def test_wrong_arguments_are_refused(load: Load, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("question,answers\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"one of \.json, \.jsonl, \.parquet"):
        load(tmp_path / "rows.csv")
    with pytest.raises(ValueError, match="no such file or folder"):
        load(tmp_path / "nowhere.json")
    with pytest.raises(ValueError, match=r"limit \(0\) must be at least 1"):
        load("tiny_world", limit=0)
    with pytest.raises(ValueError, match="name: only for a corpus on the Hub"):
        load("tiny_world", name="x")


# Questions made out of contexts


CONTEXTS = [
    CONTEXT + " Émile Zola, aged 46, had never seen snow before that winter.",
    "The old mill ground 1,500 sacks a year. It stood (since 1820) near Castle Hill in Wales.",
    "Nobody there had asked for a castle of cards; Émile built one from 52 playing cards.",
    "Too short. Far too short!",
]
ASKED = {"in", "what", "year", "when", "how", "many", "much", "who", "which", "where", "why"}


def test_cloze_questions_ask_a_sentence_of_the_context_for_a_span_of_it(load: Load) -> None:
    made = cloze_questions(iter(CONTEXTS), 300, rates=ClozeRates(given=0.0))
    assert made.features == load_question_answering("tiny_world", limit=1)[0].features
    rows = list(made)
    assert len({row["id"] for row in rows}) == len(rows) == 300
    # Each context as often as any other, but the one with nothing to ask.
    assert Counter(row["context"] for row in rows) == dict.fromkeys(CONTEXTS[:3], 100)
    assert [row["context"] for row in rows] != CONTEXTS[:3] * 100
    for row in rows:
        text, found, start = answer(row)
        assert text == found
        words = re.findall(r"[\w,-]*\w", text)
        assert 1 <= len(words) <= 4
        # No part of a word, no sentence's end and no comma in it.
        assert not row["context"][start - 1 : start].isalnum()
        assert not row["context"][start + len(text)].isalnum()
        assert not re.search(r"[.;(]|, ", text)
        rest = Counter(re.findall(r"[\w,]*\w", row["context"].lower()))
        rest.subtract(word.lower() for word in words)
        asked = Counter(row["question"].lower().removesuffix("?").split())
        assert all(rest[word] >= asked[word] or word in ASKED for word in asked), row
        assert row["question"][0] == row["question"][0].upper()
    # As load_question_answering reads it.
    assert load(rows)[0] == rows


def test_cloze_questions_are_the_same_again_and_others_for_another_seed() -> None:
    first = list(cloze_questions(CONTEXTS, 40))
    assert list(cloze_questions(CONTEXTS, 40, seed=1)) == first
    assert list(cloze_questions(CONTEXTS, 20)) == first[:20]
    for other in (
        cloze_questions(CONTEXTS, 40, seed=2),
        cloze_questions(CONTEXTS[::-1], 40),
        cloze_questions(CONTEXTS, 40, rates=ClozeRates(kept=(0.1, 0.2))),
    ):
        assert [row["question"] for row in other] != [row["question"] for row in first]


@pytest.mark.parametrize(
    ("chances", "expected"),
    [
        ({"in_place": 1, "swapped": 0}, "That is where {} had been in the end?"),
        ({"in_place": 0, "in_front": 1, "swapped": 0}, "{} That is where had been in the end?"),
        ({"in_place": 0, "in_front": 0, "swapped": 0}, "That is where had been in the end?"),
        ({"in_place": 1, "swapped": 1}, "Had been in the end {} That is where?"),
        ({"given": 1, "swapped": 0}, "That is where Ada Lovelace had been in the end?"),
        # The nearest; of two as near the earlier.
        ({"in_place": 1, "swapped": 0, "longest": 3}, "Is where {} had?"),
        (
            {"in_place": 1, "swapped": 0, "kept": (0.0, 0.0)},
            "That is where {} had been in the end?",
        ),
    ],
)
def test_cloze_rates_by_hand(chances: dict[str, Any], expected: str) -> None:
    # A name of two words between words that are no answer; "end" is one, but far less likely.
    context = "“That is where Ada Lovelace had been, in the end.”"
    rates = ClozeRates(**{"kept": (1.0, 1.0), "names": 1e9, "given": 0.0, **chances})
    rows = list(cloze_questions([context], 20, rates=rates))
    assert {answer(row) for row in rows} == {("Ada Lovelace", "Ada Lovelace", 15)}
    possible = {expected.format(word) for word in ("who", "what", "which", "where")}
    if expected.startswith("{}"):
        possible = {question[0].upper() + question[1:] for question in possible}
    assert {row["question"] for row in rows} <= possible


def test_half_of_the_cloze_questions_hold_their_answer() -> None:
    context = "It was there that they had come to Paris with all of the others in it."
    rows = list(cloze_questions([context], 1000, rates=ClozeRates(names=1e9)))
    held = sum("paris" in row["question"].lower() for row in rows)
    assert held / 1000 == pytest.approx(CLOZE_RATES.given, abs=0.05)


@pytest.mark.parametrize(
    ("context", "expected", "words"),
    [
        ("It was there that they had 1,500 of them.", "1,500", {"how many", "how much", "what"}),
        ("It was there in 1820 that they had it.", "1820", {"when", "what year", "in what year"}),
        ("It was all of it $5.50 for them there.", "$5.50", {"how many", "how much", "what"}),
        ("It was there that they had sung it.", "sung", {"what", "which", "how", "why"}),
    ],
)
def test_cloze_question_words_suit_the_answer(context: str, expected: str, words: set[str]) -> None:
    # "sung it", and the word at its end that is no answer taken off.
    rates = ClozeRates(in_place=0, in_front=1, longer=1, given=0)
    rows = list(cloze_questions([context], 60, rates=rates))
    assert {row["answers"]["text"][0] for row in rows} == {expected}
    found = {
        word for word in words for row in rows if row["question"].lower().startswith(f"{word} ")
    }
    assert found == words


def test_cloze_questions_keep_as_many_words_as_they_should_and_ask_for_names() -> None:
    context = " ".join(["Once more", *["some word"] * 10, "came from Paris to that place."])
    rows = list(cloze_questions([context], 2000, rates=ClozeRates(in_place=0, in_front=0, given=0)))
    assert CLOZE_RATES.kept == (0.5, 0.9)
    # 28 words, of which one or some are the answer; 16 at most are kept.
    long = list(
        cloze_questions(
            [context], 2000, rates=ClozeRates(in_place=0, in_front=0, longest=99, given=0)
        )
    )
    shares = [
        len(row["question"].split()) / (28 - len(row["answers"]["text"][0].split())) for row in long
    ]
    assert sum(shares) / len(shares) == pytest.approx(0.7, abs=0.02)
    assert min(shares) < 0.5
    assert max(shares) > 0.9
    assert max(len(row["question"].split()) for row in rows) == 16
    # Four times as likely as each of: Once, ten times word, came, place.
    asked = sum(row["answers"]["text"] == ["Paris"] for row in rows)
    assert asked / 2000 == pytest.approx(4 / (4 + 13), abs=0.04)


def test_cloze_questions_that_cannot_be_made_are_refused() -> None:
    with pytest.raises(ValueError, match=r"none of the 2 contexts has a sentence"):
        # Too short, and no word that says anything.
        cloze_questions([CONTEXTS[3], "It was there that they had been."], 3)
    with pytest.raises(ValueError, match=r"none of the 0 contexts"):
        cloze_questions([], 3)
    with pytest.raises(ValueError, match=r"count \(0\) of cloze questions must be at least 1"):
        cloze_questions(CONTEXTS, 0)


@pytest.mark.slow
def test_shared_squad_is_read_whole_and_every_answer_is_where_it_says(
    load: Load, shared_data: Path
) -> None:
    for split, count in (("train", 87_599), ("validation", 10_570)):
        rows, report = load(shared_data / "squad", split)
        assert (report.kept, report.skipped, report.mended) == (count, {}, {})
        assert all(text == found for text, found, _ in map(answer, rows))
