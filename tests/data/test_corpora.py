"""Every way in to parallel text, what is skipped and counted, and every refusal."""

import json
import os
import pickle
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, IterableDataset

from vanilla_transformer.data import readers
from vanilla_transformer.data.corpora import hold_out, load_parallel

PAIRS = [
    ("The dog barks.", "Der Hund bellt."),
    ('"Yes", she says.', "»Ja«, sagt sie."),
    ("two\nlines", "zwei\r\nZeilen"),
    (" spaces  stay ", "\u00a0Grüße 👩‍👩‍👧"),
]
EN_DE = [{"en": en, "de": de} for en, de in PAIRS]
TRANSLATION = [{"translation": row} for row in EN_DE]
SOURCE_TARGET = [{"source": en, "target": de} for en, de in PAIRS]
SCHEMAS = pytest.mark.parametrize(
    "rows", [EN_DE, TRANSLATION, SOURCE_TARGET], ids=["languages", "translation", "source-target"]
)
STREAMING = pytest.mark.parametrize("streaming", [False, True], ids=["mapped", "streaming"])


def write_jsonl(path: Path, rows: list) -> Path:
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8", newline="")
    return path


def load(corpus, tmp_path, *args, source_lang="en", target_lang="de", **kwargs):
    """Load with a cache of the test's own, and read it all."""
    options = {"cache_dir": tmp_path / "cache", **kwargs}
    dataset, report = load_parallel(corpus, source_lang, target_lang, *args, **options)
    return [(row["source"], row["target"]) for row in dataset], report


# Ways in


@SCHEMAS
@STREAMING
def test_jsonl(tmp_path, rows, streaming):
    path = write_jsonl(tmp_path / "pairs.jsonl", rows)
    pairs, report = load(path, tmp_path, streaming=streaming)
    assert pairs == PAIRS
    assert (report.read, report.kept, report.skipped) == (4, 4, {})


@SCHEMAS
def test_json_list_and_json_lines_under_one_name(tmp_path, rows):
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    assert load(path, tmp_path)[0] == PAIRS
    assert load(write_jsonl(path, rows), tmp_path)[0] == PAIRS


@SCHEMAS
@STREAMING
def test_parquet(tmp_path, rows, streaming):
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet", row_group_size=2)
    assert load(tmp_path / "pairs.parquet", tmp_path, streaming=streaming)[0] == PAIRS


@STREAMING
def test_csv_is_quoted(tmp_path, streaming):
    path = tmp_path / "pairs.csv"
    text = 'id,en,de\n1,"a, ""b""\nc",x\n\n2,007,NA\n'
    path.write_text(text, encoding="utf-8-sig", newline="")
    # Numbers and "NA" stay the text they are.
    expected = [('a, "b"\nc', "x"), ("007", "NA")]
    assert load(path, tmp_path, streaming=streaming)[0] == expected


def test_tsv_is_not_quoted(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_bytes('en\tde\r\n"Yes," she says.\t„Ja“\r\n"open\tx'.encode())
    assert load(path, tmp_path)[0] == [('"Yes," she says.', "„Ja“"), ('"open', "x")]


@STREAMING
def test_two_text_files(tmp_path, streaming):
    # Only a newline ends a line: Unicode has more separators, and they occur in text.
    (tmp_path / "a.en").write_bytes(b"\xef\xbb\xbfone\r\n tw\xe2\x80\xa8o \nthree\x0c\n")
    (tmp_path / "a.de").write_bytes("eins\nzwei\ndr\x85ei".encode())
    files = [tmp_path / "a.en", tmp_path / "a.de"]
    expected = [("one", "eins"), (" tw\u2028o ", "zwei"), ("three\x0c", "dr\x85ei")]
    assert load(files, tmp_path, streaming=streaming)[0] == expected


def test_direction_follows_the_languages(tmp_path):
    path = write_jsonl(tmp_path / "pairs.jsonl", TRANSLATION)
    pairs, _ = load(path, tmp_path, source_lang="de", target_lang="en")
    assert pairs == [(de, en) for en, de in PAIRS]


def test_folder_gives_the_split_and_the_pair_asked_for(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", [{"en": "both", "de": "beide"}])
    write_jsonl(folder / "train_de-en.jsonl", [{"en": "pair", "de": "Paar"}])
    write_jsonl(folder / "train_en-fr.jsonl", [{"en": "pair", "fr": "paire"}])
    write_jsonl(folder / "test_2016.jsonl", [{"en": "test", "de": "Test"}])
    (folder / "validation.en").write_text("valid\n", encoding="utf-8")
    (folder / "validation.de").write_text("gültig\n", encoding="utf-8")
    (folder / "README.md").write_text("about", encoding="utf-8")

    assert load(folder, tmp_path)[0] == [("pair", "Paar")]
    assert load(str(folder), tmp_path, target_lang="fr")[0] == [("pair", "paire")]
    assert load(folder, tmp_path, "test_2016")[0] == [("test", "Test")]
    assert load(folder, tmp_path, "validation")[0] == [("valid", "gültig")]
    # Not the union of all that begins with "test", and not another language's file.
    present = "test_2016, train, train_de-en, train_en-fr, validation"
    with pytest.raises(ValueError, match=rf"\(en-de\) has no split 'test'; it has {present}$"):
        load(folder, tmp_path, "test")


@pytest.mark.parametrize("below", ["", "data", "de-en"])
def test_shards_are_read_in_order(tmp_path, below):
    folder = tmp_path / "clone" / below
    folder.mkdir(parents=True)
    for shard in (1, 0, 2):
        name = f"train-0000{shard}-of-00003.jsonl"
        write_jsonl(folder / name, [{"en": f"{shard}", "de": f"{shard}"}])
    pairs, _ = load(tmp_path / "clone", tmp_path)
    assert [source for source, _ in pairs] == ["0", "1", "2"]


@STREAMING
def test_what_save_to_disk_wrote(tmp_path, streaming):
    dataset = Dataset.from_list(TRANSLATION)
    dataset.save_to_disk(tmp_path / "one")
    DatasetDict(train=dataset, test=dataset.select([0])).save_to_disk(tmp_path / "several")
    assert load(tmp_path / "one", tmp_path, streaming=streaming)[0] == PAIRS
    pairs, report = load(tmp_path / "several", tmp_path, "test", streaming=streaming)
    assert pairs == PAIRS[:1]
    assert report.kept == 1
    with pytest.raises(ValueError, match=r"has no split 'dev'; it has test, train$"):
        load(tmp_path / "several", tmp_path, "dev")


@STREAMING
def test_embedded_corpus(tmp_path, streaming):
    pairs, report = load("tiny_world", tmp_path, limit=50, streaming=streaming)
    assert len(pairs) == report.kept == report.read == 50
    back, _ = load("tiny_world", tmp_path, source_lang="de", target_lang="en", limit=50)
    assert back == [(de, en) for en, de in pairs]
    held_out, _ = load("tiny_world", tmp_path, "test", limit=50)
    assert not set(held_out) & set(pairs)


def test_embedded_corpus_has_two_languages_and_three_splits(tmp_path):
    with pytest.raises(ValueError, match="has English and German, not 'en' and 'fr'"):
        load("tiny_world", tmp_path, target_lang="fr")
    with pytest.raises(ValueError, match="no split 'dev'; it has test, train, validation"):
        load("tiny_world", tmp_path, "dev")


# What the Hub is asked for (it cannot be reached from the tests)


@pytest.fixture
def hub(monkeypatch):
    """Record what `load_dataset` is asked for, and answer with rows."""
    asked = {}

    def load_dataset(path, **options):
        asked.update(path=path, **options)
        rows = [{"translation": {"en": "a", "de": "b", "fr": "c", "ro": "d", "it": "e"}}]
        dataset = Dataset.from_list(rows * 3)
        return dataset.to_iterable_dataset() if options["streaming"] else dataset

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


@pytest.mark.parametrize(
    ("corpus", "languages", "expected"),
    [
        ("wmt14", ("en", "de"), {"path": "wmt/wmt14", "name": "de-en"}),
        ("wmt14", ("fr", "en"), {"path": "wmt/wmt14", "name": "fr-en"}),
        ("wmt/wmt16", ("en", "ro"), {"path": "wmt/wmt16", "name": "ro-en"}),
        (
            "iwslt2017",
            ("en", "de"),
            {
                "path": "IWSLT/iwslt2017",
                "data_dir": "iwslt2017-de-en",
                "revision": "refs/convert/parquet",
            },
        ),
        (
            "iwslt2017",
            ("it", "ro"),
            {
                "path": "IWSLT/iwslt2017",
                "data_dir": "iwslt2017-it-ro",
                "revision": "refs/convert/parquet",
            },
        ),
        (
            "iwslt14",
            ("de", "en"),
            {
                "path": "bbaaaa/iwslt14-de-en-preprocess",
                "data_dir": "de-en",
                "revision": "refs/convert/parquet",
            },
        ),
        ("someone/else", ("en", "de"), {"path": "someone/else"}),
    ],
)
@STREAMING
def test_hub_names(hub, tmp_path, corpus, languages, expected, streaming):
    source_lang, target_lang = languages
    pairs, report = load(
        corpus,
        tmp_path,
        "validation",
        source_lang=source_lang,
        target_lang=target_lang,
        streaming=streaming,
    )
    texts = {"en": "a", "de": "b", "fr": "c", "ro": "d", "it": "e"}
    assert pairs == [(texts[source_lang], texts[target_lang])] * 3
    assert (report.read, report.kept) == (3, 3)
    assert report.corpus == f"{expected['path']} validation"
    cache_dir = str(tmp_path / "cache")
    assert hub == {
        **expected,
        "split": "validation",
        "streaming": streaming,
        "cache_dir": cache_dir,
    }


def test_hub_options_given_win(hub, tmp_path):
    load("wmt14", tmp_path, name="de-en-small", revision="main", data_dir="x")
    assert (hub["name"], hub["revision"], hub["data_dir"]) == ("de-en-small", "main", "x")


def test_hub_out_of_reach(monkeypatch, tmp_path):
    def load_dataset(path, **options):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ValueError, match=r"wmt14 is neither a local file .*no route.*the network"):
        load("wmt14", tmp_path)


def test_hub_options_do_not_go_with_files(tmp_path):
    path = write_jsonl(tmp_path / "pairs.jsonl", EN_DE)
    with pytest.raises(ValueError, match="name, revision: only for a corpus on the Hub"):
        load(path, tmp_path, name="de-en", revision="main")


# What is skipped, counted, cached


@STREAMING
def test_empty_sides_are_skipped_and_counted(tmp_path, streaming):
    rows = [
        {"en": "kept", "de": "behalten"},
        {"en": "", "de": "x"},
        {"en": " \t\u00a0\n", "de": "x"},
        {"en": "x", "de": None},
        {"en": "", "de": ""},
    ]
    path = write_jsonl(tmp_path / "pairs.jsonl", rows)
    pairs, report = load(path, tmp_path, streaming=streaming)
    assert pairs == [("kept", "behalten")]
    assert (report.read, report.kept) == (5, 1)
    assert report.skipped == {"empty source": 3, "empty target": 1}


def test_streaming_counts_are_those_of_the_latest_pass(tmp_path):
    path = write_jsonl(tmp_path / "pairs.jsonl", [*EN_DE, {"en": "", "de": ""}])
    dataset, report = load_parallel(path, "en", "de", streaming=True)
    assert (report.read, report.kept) == (0, 0)
    for _ in range(2):
        assert len(list(dataset)) == 4
        assert (report.read, report.kept, report.skipped) == (5, 4, {"empty source": 1})


def test_kinds_of_data_set(tmp_path):
    path = write_jsonl(tmp_path / "pairs.jsonl", EN_DE)
    mapped, _ = load_parallel(path, "en", "de", cache_dir=tmp_path / "cache")
    assert isinstance(mapped, Dataset)
    assert mapped.column_names == ["source", "target"]
    # Memory-mapped: its rows are in a file.
    assert [Path(file["filename"]).parent.parent for file in mapped.cache_files] == [
        tmp_path / "cache"
    ]
    streamed, _ = load_parallel(path, "en", "de", streaming=True)
    assert isinstance(streamed, IterableDataset)
    assert streamed.column_names == ["source", "target"]
    # Data workers that are spawned, as on macOS, get it by pickle.
    assert list(pickle.loads(pickle.dumps(streamed))) == SOURCE_TARGET


@STREAMING
def test_limit_counts_usable_pairs(tmp_path, streaming):
    path = write_jsonl(tmp_path / "pairs.jsonl", [{"en": "", "de": "x"}, *EN_DE])
    pairs, report = load(path, tmp_path, limit=2, streaming=streaming)
    assert pairs == PAIRS[:2]
    assert (report.read, report.kept) == (3, 2)
    assert len(load(path, tmp_path, limit=99, streaming=streaming)[0]) == 4
    with pytest.raises(ValueError, match=r"limit \(0\) must be at least 1"):
        load(path, tmp_path, limit=0)


def test_second_load_comes_from_the_cache_until_the_file_changes(tmp_path, monkeypatch):
    path = write_jsonl(tmp_path / "pairs.jsonl", [*EN_DE, {"en": "", "de": ""}])
    first, report = load(path, tmp_path)
    with monkeypatch.context() as broken:
        broken.setitem(readers.READERS, ".jsonl", None)
        assert load(path, tmp_path) == (first, report)
    before = path.stat()
    write_jsonl(path, [{"en": "new", "de": "neu"}])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert load(path, tmp_path)[0] == [("new", "neu")]


def test_nothing_half_written_is_left_in_the_cache(tmp_path):
    path = write_jsonl(tmp_path / "pairs.jsonl", [*EN_DE * 1000, {"en": 1, "de": "x"}])
    for _ in range(2):
        with pytest.raises(ValueError, match="line 4001"):
            load(path, tmp_path)
        assert list((tmp_path / "cache").rglob("*.*")) == []


# Held out


def test_a_source_held_out_is_not_trained_on_with_another_translation():
    sources = [f"sentence {number % 50}" for number in range(120)]
    pairs = Dataset.from_dict({"source": sources, "target": [f"t{n}" for n in range(120)]})
    train, held_out = hold_out(pairs, 7)
    assert len(set(held_out["source"])) == 7
    assert len(train) + len(held_out) == 120
    assert not set(train["source"]) & set(held_out["source"])
    # Of the whole corpus, not of its beginning or end, and each part in the corpus's order.
    for part in (train, held_out):
        assert list(part["target"]) == sorted(part["target"], key=lambda text: int(text[1:]))
    numbers = {int(source.split()[1]) for source in held_out["source"]}
    assert max(numbers) - min(numbers) > 10


def test_what_is_held_out_does_not_depend_on_the_order_of_the_corpus():
    texts = [f"sentence {number}" for number in range(60)]
    chosen = [
        set(hold_out(Dataset.from_dict({"source": order, "target": order}), 9)[1]["source"])
        for order in (texts, texts[::-1])
    ]
    assert chosen[0] == chosen[1]


def test_a_text_of_any_column_is_held_out_with_all_its_rows():
    contexts = [f"context {number // 3}" for number in range(90)]
    questions = Dataset.from_dict({"context": contexts, "question": [f"q{n}" for n in range(90)]})
    train, held_out = hold_out(questions, 4, column="context")
    assert len(set(held_out["context"])) == 4
    assert (len(held_out), len(train)) == (12, 78)
    assert not set(train["context"]) & set(held_out["context"])
    # The same texts are chosen, whatever the column is called.
    renamed = questions.rename_column("context", "source")
    assert hold_out(renamed, 4)[1]["question"] == held_out["question"]
    with pytest.raises(ValueError, match="below the 30 different texts in the column context"):
        hold_out(questions, 30, column="context")


@pytest.mark.parametrize("count", [0, 3])
def test_more_cannot_be_held_out_than_there_is(count):
    pairs = Dataset.from_dict({"source": ["a", "b", "c", "c"], "target": ["x"] * 4})
    with pytest.raises(ValueError, match=rf"held_out \({count}\) must be .* below the 3 different"):
        hold_out(pairs, count)


# Refusals


@STREAMING
def test_undecodable_bytes(tmp_path, streaming):
    (tmp_path / "a.en").write_bytes(b"one\ntwo\n")
    (tmp_path / "a.de").write_bytes(b"eins\nzw\xfcei\n")
    files = [tmp_path / "a.en", tmp_path / "a.de"]
    with pytest.raises(ValueError, match=r"a\.de, line 2, byte 3: 0xfc is not UTF-8; .*iconv"):
        load(files, tmp_path, streaming=streaming)
    for name, head in (("a.jsonl", b""), ("a.json", b"["), ("a.csv", b""), ("a.tsv", b"")):
        (tmp_path / name).write_bytes(head + b"\n\xff")
        with pytest.raises(ValueError, match=rf"{name}, line 2, byte 1: 0xff is not UTF-8"):
            load(tmp_path / name, tmp_path, streaming=streaming)


@STREAMING
@pytest.mark.parametrize("longer", ["en", "de"])
def test_one_side_with_more_lines(tmp_path, streaming, longer):
    for lang in ("en", "de"):
        (tmp_path / f"train.{lang}").write_text("x\n" * (5 if lang == longer else 3))
    counts = (5, 3) if longer == "en" else (3, 5)
    message = rf"train\.en has {counts[0]} lines and .*train\.de has {counts[1]};"
    with pytest.raises(ValueError, match=message):
        load(tmp_path, tmp_path, streaming=streaming)


def test_one_side_missing(tmp_path):
    (tmp_path / "train.en").write_text("x\n")
    with pytest.raises(ValueError, match=r"train\.de: no such file; plain text needs one file"):
        load(tmp_path, tmp_path)
    with pytest.raises(ValueError, match="plain text comes as two files, source and target, not 1"):
        load([tmp_path / "train.en"], tmp_path)


@STREAMING
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_missing_column(tmp_path, streaming, kind):
    path = tmp_path / f"pairs.{kind}"
    rows = [{"id": 1, "en": "x", "deu": "y"}]
    if kind == "jsonl":
        write_jsonl(path, rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    message = r"(line 1|row 0): no column 'de' among 'id', 'en', 'deu'; did you mean 'deu'\?"
    with pytest.raises(ValueError, match=message):
        load(path, tmp_path, streaming=streaming)
    with pytest.raises(ValueError, match="no column 'ja' and 'zh' among"):
        load(path, tmp_path, source_lang="ja", target_lang="zh", streaming=streaming)


def test_missing_language_in_translation(tmp_path):
    path = write_jsonl(tmp_path / "pairs.jsonl", TRANSLATION)
    with pytest.raises(ValueError, match="line 1: no column 'fr' among 'en', 'de'"):
        load(path, tmp_path, target_lang="fr")


def test_column_missing_in_one_row(tmp_path):
    path = write_jsonl(tmp_path / "pairs.jsonl", [*EN_DE, {"en": "x"}])
    with pytest.raises(ValueError, match=r"pairs\.jsonl, line 5: no column 'de' among 'en'"):
        load(path, tmp_path)


@pytest.mark.parametrize("value", [5, 1.5, True, ["x"], {"x": "y"}])
def test_number_where_text_is_due(tmp_path, value):
    path = write_jsonl(tmp_path / "pairs.jsonl", [*EN_DE, {"en": "x", "de": value}])
    message = rf"pairs\.jsonl, line 5: .* is of type {type(value).__name__} where text is due"
    with pytest.raises(ValueError, match=message):
        load(path, tmp_path)


def test_number_in_parquet(tmp_path):
    pq.write_table(pa.table({"en": ["x", "y"], "de": [1, 2]}), tmp_path / "pairs.parquet")
    with pytest.raises(
        ValueError, match=r"pairs\.parquet, row 0: 1 is of type int where text is due"
    ):
        load(tmp_path / "pairs.parquet", tmp_path)


def test_half_a_surrogate_pair(tmp_path):
    (tmp_path / "pairs.jsonl").write_text('{"en": "x \\ud83d", "de": "y"}\n')
    with pytest.raises(ValueError, match=r"line 1: .* half of a surrogate pair"):
        load(tmp_path / "pairs.jsonl", tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"en": "x", "de": "y"}\n{"en": "x", "de\n', r"a\.jsonl, line 2: not JSON"),
        ("a.jsonl", '["x", "y"]\n', r"line 1: list where an object is due"),
        ("a.json", '[{"en": "x",\n"de"}]', r"a\.json, line 2: not JSON"),
        ("a.json", '["x"]', r"row 0: str where an object is due"),
        ("a.csv", "en,de\nx,y\nx,y,z\n", r"line 3: 3 fields where the header has 2 \(en, de\)"),
        ("a.csv", 'en,de\nx,"y\n', r"a\.csv, line \d: .* a quote that is not closed"),
        ("a.csv", 'en,de\n"x"x,y\n', r"a\.csv, line 2: .* a quote that is not closed"),
        ("a.tsv", "en\tde\nx\n", r"a\.tsv, line 2: 1 fields where the header has 2"),
        ("a.tsv", "en\ten\nx\ty\n", r"line 1: column 'en' comes 2 times"),
        ("a.parquet", "PAR1 torn", r"a\.parquet is not a whole Parquet file"),
        ("a.xlsx", "", r"one of \.parquet, \.jsonl, .*for plain text give two files"),
        ("a.jsonl", "", "no pair with text on both sides among 0 rows"),
        ("a.csv", "", "no pair with text on both sides among 0 rows"),
        ("a.jsonl", '{"en": "", "de": "y"}\n', r"among 1 rows \(1 empty source\)"),
    ],
)
@STREAMING
def test_malformed_files(tmp_path, name, text, message, streaming):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load(tmp_path / name, tmp_path, streaming=streaming)


def test_two_kinds_of_file_for_one_split(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", EN_DE)
    (tmp_path / "train.csv").write_text("en,de\nx,y\n")
    with pytest.raises(ValueError, match=r"has train as \.csv, \.jsonl; name the file"):
        load(tmp_path, tmp_path)


@pytest.mark.parametrize("corpus", ["./nowhere", "nowhere.jsonl", "/no/where", "no/such/place"])
def test_path_to_nowhere_is_not_looked_up_on_the_hub(hub, tmp_path, corpus):
    for path in (corpus, Path(corpus)):
        with pytest.raises(ValueError, match=r"nowhere|no/where|no/such/place"):
            load(path, tmp_path)
    assert hub == {}


# Real data


@pytest.mark.parametrize(
    ("folder", "split", "languages", "count"),
    [
        ("multi30k", "validation", ("en", "de"), 1_014),
        ("multi30k_tok", "test_2016_flickr", ("de", "fr"), 1_000),
        ("tatoeba_en_fr", "test", ("en", "fr"), 12_681),
        ("libreoffice_help", "validation", ("fr", "en"), 1_000),
        ("wmt_newstest", "newstest2014", ("en", "de"), 3_003),
    ],
)
def test_shared_data(shared_data, tmp_path, folder, split, languages, count):
    dataset, report = load_parallel(
        shared_data / folder, *languages, split, cache_dir=tmp_path / "cache"
    )
    assert (len(dataset), report.read, report.kept) == (count, count, count)
