"""Every way in to premise and hypothesis, and above all: what a label means is never guessed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from vanilla_transformer.data.inference_corpora import (
    LABELS,
    TWO_WAY_LABELS,
    InferenceReport,
    label_meaning,
    load_inference,
)

REVERSED = ("contradiction", "neutral", "entailment")


def rows_of(*labels: Any, **more: Any) -> list[dict[str, Any]]:
    """One pair for each label, told apart by its hypothesis."""
    return [
        {"premise": "A dog runs.", "hypothesis": f"Pair {number}.", "label": label, **more}
        for number, label in enumerate(labels)
    ]


def write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]], names: Sequence[str] | None) -> Path:
    label = ClassLabel(names=list(names)) if names else Value("int64")
    text = {column: Value("string") for column in rows[0] if column != "label"}
    Dataset.from_list(rows, features=Features({**text, "label": label})).to_parquet(str(path))
    return path


def names_of(dataset: Dataset) -> list[str]:
    """The labels of a data set in words."""
    names = dataset.features["label"].names
    return [names[label] for label in dataset["label"]]


# What a label means


@pytest.mark.parametrize("names", [LABELS, REVERSED, ("Neutral", "Contradictory", "Entails")])
def test_numbers_are_read_by_the_names_that_come_with_them(tmp_path, names):
    path = write_parquet(tmp_path / "set.parquet", rows_of(0, 1, 2, 0), names)
    dataset, report = load_inference(path)
    meanings = [label_meaning(name) for name in names]
    assert dataset.features["label"].names == list(LABELS)
    assert names_of(dataset) == [meanings[label] for label in (0, 1, 2, 0)]
    assert report.labels == {str(number): meaning for number, meaning in enumerate(meanings)}


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_bare_numbers_are_refused_until_somebody_says_what_they_mean(tmp_path, kind):
    rows = rows_of(0, 2)
    path = tmp_path / f"set.{kind}"
    if kind == "parquet":
        write_parquet(path, rows, None)
    elif kind == "jsonl":
        write_jsonl(path, rows)
    else:
        path.write_text("premise,hypothesis,label\na,b,0\nc,d,2\n", encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"set\.\w+, (row 0|line [12]): .*nothing says.*label_names"
    ):
        load_inference(path)
    assert names_of(load_inference(path, label_names=LABELS)[0]) == ["entailment", "contradiction"]
    assert names_of(load_inference(path, label_names=REVERSED)[0]) == [
        "contradiction",
        "entailment",
    ]


def test_label_names_may_not_contradict_the_set(tmp_path):
    path = write_parquet(tmp_path / "set.parquet", rows_of(0, 1, 2), REVERSED)
    assert names_of(load_inference(path, label_names=REVERSED)[0]) == list(REVERSED)
    with pytest.raises(ValueError, match=r"contradict .*which says contradiction, neutral"):
        load_inference(path, label_names=LABELS)


def test_names_that_say_nothing_leave_it_to_label_names(tmp_path):
    path = write_parquet(tmp_path / "set.parquet", rows_of(0, 1, 2), ("LABEL_0", "LABEL_1", "x"))
    with pytest.raises(ValueError, match=r"'LABEL_0', 'LABEL_1', 'x'.* give label_names"):
        load_inference(path)
    assert names_of(load_inference(path, label_names=LABELS)[0]) == list(LABELS)


@pytest.mark.parametrize(
    "names", [("entailment", "neutral"), ("entailment", "neutral", "neutral"), ("yes", "no"), ()]
)
def test_label_names_must_be_all_of_one_kind_of_set(tmp_path, names):
    path = write_jsonl(tmp_path / "set.jsonl", rows_of(0))
    with pytest.raises(ValueError, match=r"label_names .* must be entailment, neutral"):
        load_inference(path, label_names=names)


@pytest.mark.parametrize(
    ("spelling", "meaning"),
    [
        ("entailment", "entailment"),
        ("ENTAILMENT", "entailment"),
        (" e ", "entailment"),
        ("n", "neutral"),
        ("contradictory", "contradiction"),
        ("not_entailment", "not_entailment"),
        ("Non-Entailment", "not_entailment"),
        ("not entailment", "not_entailment"),
        ("entailmentt", None),
        ("", None),
    ],
)
def test_usual_spellings_of_labels(spelling, meaning):
    assert label_meaning(spelling) == meaning


def test_unknown_label_is_named_by_row_with_a_guess(tmp_path):
    path = write_jsonl(tmp_path / "set.jsonl", rows_of("neutral", "contradicton"))
    with pytest.raises(
        ValueError, match=r"set.jsonl, line 2: .*'contradicton', did you mean 'contr"
    ):
        load_inference(path)


@pytest.mark.parametrize("label", [True, 1.0, "1.0", ["neutral"], {"a": 1}])
def test_labels_that_are_neither_number_nor_word_are_refused(tmp_path, label):
    path = write_jsonl(tmp_path / "set.jsonl", rows_of(label))
    with pytest.raises(ValueError, match="line 1: unknown label"):
        load_inference(path, label_names=LABELS)


def test_number_beyond_the_names_is_refused(tmp_path):
    path = write_jsonl(tmp_path / "set.jsonl", rows_of(0, 3))
    with pytest.raises(ValueError, match="line 2: label 3 is out of range; there are 3"):
        load_inference(path, label_names=LABELS)


def test_two_labels_stay_two(tmp_path):
    path = write_jsonl(tmp_path / "set.jsonl", rows_of("non-entailment", "entailment"))
    dataset, report = load_inference(path)
    assert dataset.features["label"].names == list(TWO_WAY_LABELS)
    assert dataset["label"] == [1, 0]
    assert report.per_label == {"entailment": 1, "not_entailment": 1}


def test_labels_of_both_kinds_of_set_are_refused(tmp_path):
    path = write_jsonl(tmp_path / "set.jsonl", rows_of("not_entailment", "neutral"))
    with pytest.raises(ValueError, match="labels of two kinds of set, neutral, not_entailment"):
        load_inference(path)


# What is left out


def test_rows_without_gold_label_are_dropped_counted_and_named(tmp_path):
    path = write_jsonl(tmp_path / "set.jsonl", rows_of("neutral", -1, "-", None, "", "e"))
    dataset, report = load_inference(path)
    assert dataset["hypothesis"] == ["Pair 0.", "Pair 5."]
    assert report.skipped == {"no gold label": 4}
    assert report.skipped_rows == {"no gold label": [f"{path}, line {n}" for n in (2, 3, 4, 5)]}
    assert (report.read, report.kept) == (6, 2)


def test_unlabelled_rows_are_kept_for_prediction(tmp_path):
    path = write_jsonl(tmp_path / "set.jsonl", rows_of("neutral", -1))
    dataset, _ = load_inference(path, keep_unlabelled=True)
    assert dataset["label"] == [1, -1]
    # A test set with hidden labels may have no column for them at all.
    path = write_jsonl(tmp_path / "test.jsonl", [{"premise": "a", "hypothesis": "b"}])
    assert load_inference(path, keep_unlabelled=True)[0]["label"] == [-1]
    with pytest.raises(ValueError, match="line 1: no column 'label' among 'premise', 'hypoth"):
        load_inference(path)


def test_blank_sides_are_dropped_counted_and_named(tmp_path):
    rows = [
        {"premise": " ", "hypothesis": "b", "label": "e"},
        {"premise": "a", "hypothesis": None, "label": "e"},
        {"premise": "a", "hypothesis": " b ", "label": "e"},
    ]
    path = write_jsonl(tmp_path / "set.jsonl", rows)
    dataset, report = load_inference(path)
    assert dataset["hypothesis"] == [" b "]
    assert report.skipped == {"empty premise": 1, "empty hypothesis": 1}
    assert report.skipped_rows["empty hypothesis"] == [f"{path}, line 2"]


def test_text_that_is_none_is_refused(tmp_path):
    path = write_jsonl(tmp_path / "set.jsonl", [{"premise": 3, "hypothesis": "b", "label": "e"}])
    with pytest.raises(ValueError, match="line 1: 3 is of type int where text is due"):
        load_inference(path)


def test_nothing_left_is_refused(tmp_path):
    path = write_jsonl(tmp_path / "set.jsonl", rows_of(-1, -1))
    with pytest.raises(ValueError, match=r"nothing to use among 2 rows \(2 no gold label\)"):
        load_inference(path)


def test_limit_counts_usable_rows(tmp_path):
    path = write_jsonl(tmp_path / "set.jsonl", rows_of("-", "e", "-", "n", "c"))
    dataset, report = load_inference(path, limit=2)
    assert names_of(dataset) == ["entailment", "neutral"]
    assert (report.read, report.kept) == (4, 2)
    with pytest.raises(ValueError, match=r"limit \(0\)"):
        load_inference(path, limit=0)


# The files as their authors give them


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        (
            "snli_1.0_test.jsonl",
            '{"annotator_labels": ["neutral"], "gold_label": "neutral", "pairID": "1.jpg#0r1n", '
            '"sentence1": "P.", "sentence2": "H."}\n'
            '{"gold_label": "-", "pairID": "x", "sentence1": "P.", "sentence2": "H."}\n',
            {"id": "1.jpg#0r1n", "label": 1},
        ),
        (
            "multinli_1.0_dev_matched.txt",
            "gold_label\tsentence1\tsentence2\tpairID\tgenre\tlabel1\n"
            "contradiction\tP.\tH.\t63735n\tslate\tneutral\n",
            {"id": "63735n", "label": 2, "genre": "slate"},
        ),
        (
            "anli_r1.jsonl",
            '{"uid": "u1", "context": "P.", "hypothesis": "H.", "label": "c", "reason": "r"}\n',
            {"id": "u1", "label": 2},
        ),
        (
            "xnli.dev.tsv",
            "language\tgold_label\tsentence1\tsentence2\nde\tentailment\tP.\tH.\n",
            {"id": "2", "label": 0, "language": "de"},
        ),
        (
            "RTE.tsv",
            "index\tsentence1\tsentence2\tlabel\n0\tP.\tH.\tnot_entailment\n",
            {"id": "0", "label": 1},
        ),
        (
            "heuristics_evaluation_set.txt",
            "gold_label\tsentence1\tsentence2\tpairID\theuristic\tsubcase\ttemplate\n"
            "non-entailment\tP.\tH.\tex0\tlexical_overlap\tln_passive\ttemp1\n",
            {
                "id": "ex0",
                "label": 1,
                "heuristic": "lexical_overlap",
                "subcase": "ln_passive",
                "template": "temp1",
            },
        ),
        (
            "breaking_nli.jsonl",
            '{"sentence1": "P.", "sentence2": "H.", "gold_label": "contradiction", '
            '"category": "colors", "pairID": 5}\n',
            {"id": "5", "label": 2, "category": "colors"},
        ),
        (
            "taxinli.csv",
            'premise,hypothesis,label,phenomena\nP.,H.,entailment,"negation_logic; world"\n',
            {"id": "2", "label": 0, "phenomena": ["negation_logic", "world"]},
        ),
    ],
)
def test_files_as_their_authors_give_them(tmp_path, name, text, expected):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    dataset, _ = load_inference(path)
    assert dataset.to_list() == [{**expected, "premise": "P.", "hypothesis": "H."}]


@pytest.mark.parametrize(
    ("split", "expected"), [("train", ["1"]), ("validation", ["2"]), ("test", ["3"])]
)
def test_splits_of_sick_are_not_mixed(tmp_path, split, expected):
    path = tmp_path / "SICK.txt"
    head = "pair_ID\tsentence_A\tsentence_B\tentailment_label\tSemEval_set\n"
    rows = "1\ta\tb\tNEUTRAL\tTRAIN\n2\ta\tb\tENTAILMENT\tTRIAL\n3\ta\tb\tCONTRADICTION\tTEST\n"
    path.write_text(head + rows, encoding="utf-8")
    dataset, report = load_inference(path, split)
    assert dataset["id"] == expected
    assert report.skipped == {"of another split": 2}


def test_shards_folders_and_saved_sets(tmp_path):
    (tmp_path / "data").mkdir()
    for shard, label in enumerate((0, 2)):
        name = f"train-0000{shard}-of-00002.parquet"
        write_parquet(tmp_path / "data" / name, rows_of(label), REVERSED)
    dataset, report = load_inference(tmp_path, "train")
    assert names_of(dataset) == ["contradiction", "entailment"]
    assert report.corpus == str(tmp_path / "train")
    with pytest.raises(ValueError, match="no split 'test'; it has train"):
        load_inference(tmp_path, "test")
    DatasetDict(dev=dataset).save_to_disk(str(tmp_path / "saved"))
    again, _ = load_inference(tmp_path / "saved", "dev")
    assert again.to_list() == dataset.to_list()
    with pytest.raises(ValueError, match="no split 'train'; it has dev"):
        load_inference(tmp_path / "saved", "train")


def test_shards_that_name_their_labels_differently_are_refused(tmp_path):
    for shard, names in enumerate((LABELS, REVERSED)):
        write_parquet(tmp_path / f"train-0000{shard}-of-00002.parquet", rows_of(0), names)
    with pytest.raises(ValueError, match="name their labels differently"):
        load_inference(tmp_path, "train")


@pytest.mark.parametrize("name", ["missing.jsonl", "set.docx", "broken.parquet"])
def test_files_that_cannot_be_read_are_named(tmp_path, name):
    path = tmp_path / name
    if not name.startswith("missing"):
        path.write_bytes(b"PAR1 no more")
    with pytest.raises(ValueError, match=name):
        load_inference(path)


def test_tiny_world_is_balanced_and_names_its_phenomena():
    dataset, report = load_inference("tiny_world", "validation", limit=24)
    assert report.per_label == dict.fromkeys(LABELS, 8)
    assert {one for row in dataset["phenomena"] for one in row} == {
        "negation",
        "quantifier",
        "coreference",
        "plain",
    }
    with pytest.raises(ValueError, match="no split 'dev'"):
        load_inference("tiny_world", "dev")


# The Hub


@pytest.fixture
def hub(monkeypatch):
    """Record what `load_dataset` is asked for, and answer with rows."""
    asked: dict[str, Any] = {}

    def load_dataset(path, **options):
        asked.update(path=path, **options)
        features = Features(
            {
                "premise": Value("string"),
                "hypothesis": Value("string"),
                "label": ClassLabel(names=list(REVERSED)),
            }
        )
        return Dataset.from_list(rows_of(0, 1, 2, -1), features=features)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


@pytest.mark.parametrize(
    ("corpus", "split", "options", "expected"),
    [
        ("snli", "train", {}, {"path": "stanfordnlp/snli", "split": "train"}),
        (
            "mnli",
            "validation_mismatched",
            {},
            {"path": "nyu-mll/multi_nli", "split": "validation_mismatched"},
        ),
        ("anli", "validation", {"name": "r2"}, {"path": "facebook/anli", "split": "dev_r2"}),
        ("facebook/anli", "train_r1", {}, {"path": "facebook/anli", "split": "train_r1"}),
        ("xnli", "test", {"name": "de"}, {"path": "facebook/xnli", "name": "de"}),
        ("rte", "train", {}, {"path": "nyu-mll/glue", "name": "rte"}),
        ("RobZamp/sick", "test", {}, {"path": "RobZamp/sick", "revision": "refs/convert/parquet"}),
        ("hans", "validation", {"revision": "x"}, {"path": "jhu-cogsci/hans", "revision": "x"}),
        ("somebody/else", "test", {"data_dir": "d"}, {"path": "somebody/else", "data_dir": "d"}),
    ],
)
def test_hub_sets_are_asked_for_by_their_ids(hub, corpus, split, options, expected):
    dataset, report = load_inference(corpus, split, **options)
    assert expected.items() <= hub.items()
    assert names_of(dataset) == list(REVERSED)
    assert report.skipped == {"no gold label": 1}
    if corpus == "xnli":
        assert dataset["language"] == ["de"] * 3


@pytest.mark.parametrize(
    ("corpus", "options", "complaint"),
    [
        ("anli", {}, r"name \(None\) must be one of r1, r2, r3"),
        ("anli", {"name": "r4"}, r"name \(r4\)"),
        ("xnli", {}, "XNLI comes by language"),
        ("./none.jsonl", {"name": "x"}, "name: only for a set on the Hub"),
    ],
)
def test_hub_options_that_are_missing_or_out_of_place(hub, corpus, options, complaint):
    with pytest.raises(ValueError, match=complaint):
        load_inference(corpus, **options)


def test_hub_out_of_reach_is_said_plainly(monkeypatch):
    def load_dataset(path, **options):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ValueError, match=r"snli is neither a local file .*no route"):
        load_inference("snli")


# The real sets


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "split", "per_label", "columns"),
    [
        ("nli_small", "train", (15587, 19660, 12830), {"source"}),
        ("nli_small", "validation_cad", (326, 325, 349), set()),
        ("nli_small", "validation_sick", (144, 282, 74), set()),
        ("nli_small", "test_cad", (654, 677, 669), set()),
        ("nli_small", "test_sick", (1414, 2793, 720), set()),
        ("snli", "validation", (3325, 3231, 3275), set()),
        ("snli", "test", (3368, 3219, 3237), set()),
        ("taxinli", "validation", (2822, 2161, 2744), {"phenomena"}),
        ("hans", "validation", (15000, 15000), {"heuristic", "subcase"}),
        ("breaking_nli", "test", (982, 47, 7164), {"category"}),
    ],
)
def test_real_sets_are_read_whole(shared_data, folder, split, per_label, columns):
    dataset, report = load_inference(shared_data / folder, split)
    names = LABELS if len(per_label) == 3 else TWO_WAY_LABELS
    assert report == InferenceReport(
        corpus=str(shared_data / folder / f"{split}.parquet"),
        read=sum(per_label),
        kept=sum(per_label),
        labels=report.labels,
        per_label=dict(zip(names, per_label, strict=True)),
    )
    assert set(dataset.column_names) == {"id", "premise", "hypothesis", "label", *columns}
