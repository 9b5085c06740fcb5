"""Rows of every kind of file, named by their numbers, and the copy of what is kept of them."""

import codecs
import json
import os
import pickle
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, Features, Value

from vanilla_transformer.data import readers, tiny_world
from vanilla_transformer.data.readers import READERS, CorpusReport

# Letters of several bytes, blanks that are no line ends, a separator and quotes inside.
ROWS = [
    {"id": "1", "text": "Zoë met 👩‍👩‍👧."},
    {"id": "2", "text": "a\u2028b\x0bc\x1cd\x85e, 'f'; g\u00a0"},
    {"id": "3", "text": ""},
]


def records(path: Path) -> list[tuple[str, int, dict[str, Any]]]:
    return [(where, number, dict(row)) for where, number, row in READERS[path.suffix](path)]


def write(path: Path, rows: list[dict[str, Any]] = ROWS) -> tuple[Path, str, list[int]]:
    """A file of its name's kind; how its rows are to be named, and their numbers."""
    columns = list(rows[0])
    numbers, unit = list(range(len(rows))), "row"
    if path.name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    elif path.name == "list.json":
        path.write_text(json.dumps(rows, indent=1), "utf-8")
    else:
        unit = "line"
        if path.suffix in (".json", ".jsonl"):
            lines = [json.dumps(row, ensure_ascii=False) for row in rows]
            first = 1
        else:
            separator = {".csv": ",", ".tsv": "\t"}[path.suffix]
            quote = '"' if path.suffix == ".csv" else ""
            lines = [separator.join(columns)]
            lines += [
                separator.join(f"{quote}{row[one]}{quote}" for one in columns) for row in rows
            ]
            first = 2
        numbers = list(range(first, first + len(rows)))
        path.write_text("".join(line + "\n" for line in lines), "utf-8", newline="")
    return path, f"{path}, {unit}", numbers


NAMES = ["a.parquet", "list.json", "lines.json", "a.jsonl", "a.csv", "a.tsv"]
TEXT_NAMES = NAMES[1:]


# Kinds of files


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_each_kind_come_with_their_numbers(tmp_path: Path, name: str) -> None:
    path, where, numbers = write(tmp_path / name)
    assert records(path) == [
        (where, number, row) for number, row in zip(numbers, ROWS, strict=True)
    ]


def test_every_kind_is_tried_here() -> None:
    assert {Path(name).suffix for name in NAMES} == set(READERS)


@pytest.mark.parametrize("name", TEXT_NAMES)
def test_a_mark_of_byte_order_is_no_text(tmp_path: Path, name: str) -> None:
    path, *_ = write(tmp_path / name)
    expected = records(path)
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    assert records(path) == expected


@pytest.mark.parametrize("name", ["lines.json", "a.jsonl", "a.csv", "a.tsv"])
def test_line_ends_of_windows_and_empty_lines_count_and_are_passed_over(
    tmp_path: Path, name: str
) -> None:
    path, where, numbers = write(tmp_path / name)
    content = path.read_bytes().replace(b"\n", b"\r\n")
    first_row = 0 if "json" in name else content.index(b"\r\n") + 2
    path.write_bytes(content[:first_row] + b"\r\n\r\n" + content[first_row:] + b"\r\n")
    assert records(path) == [
        (where, number + 2, row) for number, row in zip(numbers, ROWS, strict=True)
    ]


@pytest.mark.parametrize("name", TEXT_NAMES)
@pytest.mark.parametrize(
    ("encoding", "byte"), [("latin-1", "0xeb"), ("utf-16", "0xff")], ids=["latin-1", "utf-16"]
)
def test_other_encodings_are_named_with_line_and_byte(
    tmp_path: Path, name: str, encoding: str, byte: str
) -> None:
    path, *_ = write(tmp_path / name, [{"id": "1", "text": "a"}, {"id": "2", "text": "Zoë"}])
    text = path.read_text("utf-8").replace("\\u00eb", "ë")
    path.write_bytes(text.encode(encoding))
    line, place = 1, 1
    if encoding == "latin-1":
        line = 1 + text[: text.index("ë")].count("\n")
        place = 1 + text.splitlines()[line - 1].index("ë")
    message = f"{path}, line {line}, byte {place}: {byte} is not UTF-8; convert the file"
    with pytest.raises(ValueError, match=re.escape(message)):
        records(path)


def test_a_table_has_text_only_and_keeps_it(tmp_path: Path) -> None:
    table = tmp_path / "a.csv"
    table.write_text('n,text\n007,NA\n"1","a ""b""\nc"\n,null\n', "utf-8")
    assert [row for _, _, row in records(table)] == [
        {"n": "007", "text": "NA"},
        {"n": "1", "text": 'a "b"\nc'},
        {"n": "", "text": "null"},
    ]
    # A row of several lines is named by its last.
    assert [number for _, number, _ in records(table)] == [2, 4, 5]
    table = tmp_path / "a.tsv"
    table.write_text('n\ttext\n1\t"a"" b\n2\t"\n', "utf-8")
    assert [row["text"] for _, _, row in records(table)] == ['"a"" b', '"']


@pytest.mark.parametrize("name", TEXT_NAMES)
def test_an_empty_file_has_no_rows(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"")
    assert records(path) == []


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": \n', r"line 2: not JSON .* every line must be one whole"),
        ("a.jsonl", '{"a": 1}\n\n[1]\n', "line 3: list where an object is due"),
        ("a.jsonl", "null\n", "line 1: NoneType where an object is due"),
        # An object over several lines is no line.
        ("a.json", '{\n"a": 1}\n', "line 1: not JSON"),
        ("a.json", '[{"a": 1},\n{"a": }]', "line 2: not JSON"),
        ("a.json", '[{"a": 1}, "b"]', "row 1: str where an object is due"),
        ("a.csv", 'a,b\n1,2\n"1,2\n3,4\n', "line 4: .*a quote that is not closed"),
        ("a.csv", 'a,b\n"1"2,3\n', "line 2: .*not doubled"),
        ("a.csv", "a,b\n1,2\n1,2,3\n", r"line 3: 3 fields where the header has 2 \(a, b\)"),
        ("a.csv", "a,b,a\n", "line 1: column 'a' comes 2 times"),
        ("a.tsv", "a\tb\n\n1\n", "line 3: 1 fields where the header has 2"),
        ("a.parquet", "PAR1 and then nothing", "is not a whole Parquet file"),
    ],
)
def test_what_is_wrong_is_named_by_its_row(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    path = tmp_path / name
    path.write_text(text, "utf-8")
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}.*{message}"):
        records(path)


def test_rows_before_a_bad_one_are_given(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\nnonsense\n', "utf-8")
    rows = READERS[".jsonl"](path)
    assert [row for _, _, row in islice(rows, 2)] == [{"a": 1}, {"a": 2}]
    with pytest.raises(ValueError, match="line 3"):
        next(rows)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "3 is of type int where text is due; make it a string or remove the row"),
        (["a"], "is of type list where text is due"),
        ("a\ud83d", "half of a surrogate pair"),
    ],
)
def test_text_is_text(value: object, message: str) -> None:
    assert readers.check_text(None, "a.csv, line", 7) == ""
    assert readers.check_text("👩 ", "a.csv, line", 7) == "👩 "
    with pytest.raises(ValueError, match=f"^a.csv, line 7: .*{message}"):
        readers.check_text(value, "a.csv, line", 7)


# Places


def test_shards_of_a_file_are_one_origin(tmp_path: Path) -> None:
    paths = []
    for number, row in enumerate(ROWS):
        path = tmp_path / f"train-0000{number}-of-00003.jsonl"
        paths.append(write(path, [row])[0])
    (tmp_path / "train.txt").write_text("of another kind")
    found = readers.find_split_files(tmp_path, "train", READERS)
    assert found == paths
    origin = readers.from_files(found, READERS)
    assert origin.name == f"{paths[0]} and 2 more"
    assert [row for _, _, row in origin.records()] == ROWS
    # Each named by its own file, and a second pass begins at the first again.
    assert [where for where, _, _ in origin.records()] == [f"{path}, line" for path in paths]
    # Processes of a data loader get a copy.
    copied = pickle.loads(pickle.dumps(origin))
    assert list(copied.records()) == list(origin.records())


@pytest.mark.parametrize("below", ["", "data"])
def test_a_folder_has_splits(tmp_path: Path, below: str) -> None:
    folder = tmp_path / below
    folder.mkdir(exist_ok=True)
    for name in ("train.csv", "validation-00000-of-00001-0a1b2c.parquet", "dev.tsv"):
        write(folder / name)
    assert readers.find_split_files(tmp_path, "validation", READERS) == [
        folder / "validation-00000-of-00001-0a1b2c.parquet"
    ]
    message = f"{tmp_path} has no split 'test'; it has dev, train, validation"
    with pytest.raises(ValueError, match=re.escape(message)):
        readers.find_split_files(tmp_path, "test", READERS)
    write(folder / "train.jsonl")
    with pytest.raises(ValueError, match=r"has train as \.csv, \.jsonl; name the file to read"):
        readers.find_split_files(tmp_path, "train", READERS)


def test_an_empty_folder_has_no_splits(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no split 'test'; it has none"):
        readers.find_split_files(tmp_path, "test", READERS)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.csv: no such file or folder"):
        readers.from_files([tmp_path / "nowhere.csv"], READERS)
    (tmp_path / "a.xlsx").write_text("")
    kinds = re.escape(", ".join(READERS))
    with pytest.raises(ValueError, match=f"told by its name, one of {kinds}, or do this$"):
        readers.from_files([tmp_path / "a.xlsx"], READERS, ", or do this")


def test_what_save_to_disk_wrote_is_told_from_a_folder_of_files(tmp_path: Path) -> None:
    rows = Dataset.from_list(ROWS)
    rows.save_to_disk(tmp_path / "one")
    DatasetDict(train=rows, dev=rows.select([1])).save_to_disk(tmp_path / "several")
    (tmp_path / "files").mkdir()
    write(tmp_path / "files" / "train.csv")
    assert readers.load_saved(tmp_path / "files", "train") is None
    saved = readers.load_saved(tmp_path / "several", "dev")
    assert saved is not None
    origin = readers.from_dataset(*saved)
    assert origin.name == f"{tmp_path / 'several'} dev"
    assert list(origin.records()) == [(f"{origin.name}, row", 0, ROWS[1])]
    # One without splits is whatever split is asked for.
    saved = readers.load_saved(tmp_path / "one", "anything")
    assert saved is not None
    assert saved[0] == str(tmp_path / "one")
    assert [row for _, _, row in readers.from_dataset(*saved).records()] == ROWS
    with pytest.raises(ValueError, match="has no split 'test'; it has dev, train"):
        readers.load_saved(tmp_path / "several", "test")


def test_rows_of_a_stream_are_numbered_too() -> None:
    rows = Dataset.from_list(ROWS)
    mapped, streamed = (
        list(readers.from_dataset("a", one).records()) for one in (rows, rows.to_iterable_dataset())
    )
    assert mapped == streamed
    assert [(where, number) for where, number, _ in mapped] == [("a, row", n) for n in range(3)]


def test_the_embedded_corpus_has_as_many_rows_as_asked_for() -> None:
    def generate(split: str, count: int) -> Iterator[dict[str, Any]]:
        return ({"split": split, "number": number} for number in range(count))

    sizes = {"train": 5, "test": 2}
    for limit, count in ((None, 2), (1, 1), (4, 4)):
        origin = readers.find_tiny_world("test", limit, sizes, "pair", generate)
        found = list(origin.records())
        assert [row["number"] for _, _, row in found] == list(range(count))
        assert found[0][:2] == ("tiny_world test, pair", 1)
    one, other = (
        readers.find_tiny_world("test", limit, sizes, "pair", generate) for limit in (1, 2)
    )
    assert one.identity != other.identity
    # Another grammar writes other rows.
    assert readers.file_identity(Path(tiny_world.__file__)) in one.identity
    with pytest.raises(ValueError, match="tiny_world has no split 'dev'; it has test, train"):
        readers.find_tiny_world("dev", None, sizes, "pair", generate)


# What loaders are asked


@pytest.mark.parametrize(
    ("corpus", "expected"),
    [
        ("squad", True),
        ("rajpurkar/squad_v2", True),
        ("tiny_world", False),
        ("./squad", False),
        ("squad.json", False),
        ("a/b/c", False),
        ("a b", False),
        (Path("squad"), False),
        ([Path("a.en"), Path("a.de")], False),
    ],
)
def test_ids_of_the_hub_are_told_from_paths(corpus: Any, expected: bool) -> None:
    assert readers.is_hub_id(corpus) is expected


def test_what_is_there_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "squad").mkdir()
    assert not readers.is_hub_id("squad")


@pytest.mark.parametrize("limit", [0, -3])
def test_a_limit_leaves_something(limit: int) -> None:
    with pytest.raises(ValueError, match=rf"limit \({limit}\) .* to take every question"):
        readers.check_options("squad", limit, {}, unit="question")
    assert readers.check_options("squad", 1, {"name": None, "revision": "x"}) == {"revision": "x"}
    assert readers.check_options("a.csv", None, {"name": None}) == {}
    with pytest.raises(ValueError, match=r"name, revision: only for a set on the Hub, not a\.csv"):
        readers.check_options("a.csv", None, {"name": "x", "revision": "y"}, kind="set")


# What is kept

FEATURES = Features({"id": Value("string"), "text": Value("string")})


def kept(
    cache: Path, identity: tuple[object, ...], rows: list[dict[str, Any]], made: list[object]
) -> tuple[list[dict[str, Any]], CorpusReport]:
    """What is kept of rows; `made` says how often they were made."""
    report = CorpusReport("a corpus")

    def examples() -> Iterator[dict[str, Any]]:
        made.append(identity)
        for row in rows:
            report.read += 1
            if row["text"]:
                report.kept += 1
                yield row
            else:
                report.skipped["empty"] = report.skipped.get("empty", 0) + 1

    dataset, counted = readers.memory_map(examples, identity, cache, report, FEATURES)
    assert dataset.features == FEATURES
    return dataset.to_list(), counted


def test_examples_are_made_once_for_an_identity(tmp_path: Path) -> None:
    made: list[object] = []
    rows = [{"id": str(number), "text": str(number % 3 or "")} for number in range(2500)]
    expected = [row for row in rows if row["text"]]
    for _ in range(2):
        found, report = kept(tmp_path, ("a", 1), rows, made)
        assert found == expected
        assert report == CorpusReport("a corpus", 2500, 1666, {"empty": 834})
    assert made == [("a", 1)]
    assert kept(tmp_path, ("a", 2), rows[:3], made)[0] == rows[1:3]
    assert kept(tmp_path, ("a", 1), [], made)[0] == expected
    assert made == [("a", 1), ("a", 2)]


def test_the_cache_is_that_of_datasets_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    report = CorpusReport("x")
    dataset, _ = readers.memory_map(lambda: iter(ROWS), ("x",), None, report, FEATURES)
    assert dataset.to_list() == ROWS
    assert (tmp_path / "hf" / "vanilla_transformer").is_dir()


def test_an_error_on_the_way_leaves_nothing(tmp_path: Path) -> None:
    def examples() -> Iterator[dict[str, Any]]:
        yield from ROWS
        raise ValueError("line 4: nonsense")

    with pytest.raises(ValueError, match="line 4"):
        readers.memory_map(examples, ("x",), tmp_path, CorpusReport("x"), FEATURES)
    assert list((tmp_path / "vanilla_transformer").iterdir()) == []
    # The next one begins anew.
    made: list[object] = []
    assert len(kept(tmp_path, ("x",), ROWS, made)[0]) == 2
    assert made == [("x",)]


def test_a_report_without_its_examples_is_made_again(tmp_path: Path) -> None:
    made: list[object] = []
    kept(tmp_path, ("x",), ROWS, made)
    (arrow,) = (tmp_path / "vanilla_transformer").glob("*.arrow")
    arrow.unlink()
    assert len(kept(tmp_path, ("x",), ROWS, made)[0]) == 2
    assert len(made) == 2


def test_a_file_has_another_identity_when_it_changes(tmp_path: Path) -> None:
    path, *_ = write(tmp_path / "a.csv")
    identity = readers.file_identity(path)
    assert readers.file_identity(path) == identity
    assert readers.from_files([path], READERS).identity == (identity,)
    (tmp_path / "link.csv").symlink_to(path)
    assert readers.file_identity(tmp_path / "link.csv") == identity
    # Of the same size, a moment later.
    content = path.read_bytes()
    path.write_bytes(content[::-1])
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, identity[2] + 1))
    assert readers.file_identity(path) != identity
    # Of the same time, but longer.
    path.write_bytes(content + b"4,x\n")
    os.utime(path, ns=(stat.st_atime_ns, identity[2]))
    assert readers.file_identity(path) != identity
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, identity[2]))
    assert readers.file_identity(path) == identity
    other = path.rename(tmp_path / "b.csv")
    assert readers.file_identity(other) != identity
