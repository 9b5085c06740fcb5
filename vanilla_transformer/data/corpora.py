"""Parallel text from the Hub, from local files or from the embedded corpus, in one schema.

Every corpus comes out with two text columns, `source` and `target`. Rows may come in as
`translation: {"en": ..., "de": ...}` (the Hub's schema), as columns named by language, or as
columns `source` and `target`; plain text comes as two files with a sentence a line.
"""

import codecs
import csv
import difflib
import hashlib
import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, TypeVar, cast

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, IterableDataset, Value

from . import tiny_world

# What an error can point at: "train.jsonl, line", 12, and the row found there.
Record = tuple[str, int, Mapping[str, Any]]

_FEATURES = Features({"source": Value("string"), "target": Value("string")})

# Raised when a reader changes what it makes of a file: older cache files are then not used.
_READER_VERSION = 1

_TINY_WORLD_SIZES = {"train": 20_000, "validation": 1_000, "test": 1_000}


@dataclass
class CorpusReport:
    """What was read of a corpus, what was kept, and why the rest was skipped.

    For streamed data the counts are those of the latest pass in this process, filled in as it
    is consumed.
    """

    corpus: str
    read: int = 0
    kept: int = 0
    skipped: dict[str, int] = field(default_factory=dict)


Report = TypeVar("Report", bound=CorpusReport)


@dataclass(frozen=True)
class _Origin:
    """Where rows come from.

    `records` starts a pass over the rows; `identity` differs whenever their content does.
    """

    name: str
    records: Callable[[], Iterator[Record]]
    identity: tuple[object, ...]


def load_parallel(
    corpus: str | Path | Sequence[Path],
    source_lang: str,
    target_lang: str,
    split: str = "train",
    *,
    name: str | None = None,
    revision: str | None = None,
    data_dir: str | None = None,
    streaming: bool = False,
    cache_dir: str | Path | None = None,
    limit: int | None = None,
) -> tuple[Dataset | IterableDataset, CorpusReport]:
    """Load parallel text as two columns, `source` and `target`.

    Pairs with an empty or blank side are skipped and counted. Text is otherwise kept as it is.

    Args:
        corpus: One of

            - "tiny_world", the embedded English-German corpus;
            - a Hub id; `wmt14`, `wmt16`, `iwslt14` and `iwslt2017` stand for the namespaced ids;
            - a folder holding `<split>.<kind>`, `<split>_<source>-<target>.<kind>` or shards
              `<split>-00000-of-00002.<kind>` (kinds below), plain text `<split>.<language>`, or
              what `save_to_disk` wrote;
            - a file: .parquet; .jsonl, one object a line; .json, a list of objects or one a line;
              .csv, with a header, quoted as in RFC 4180; .tsv, with a header, unquoted;
            - two plain-text files, source and target, with a sentence a line.
        source_lang: Language to translate from, as the corpus names it ("en").
        target_lang: Language to translate into.
        split: Part of the corpus; without meaning where `corpus` names the files themselves.
        name: Configuration of a Hub corpus; for the short names found from the languages.
        revision: Revision of a Hub corpus.
        data_dir: Folder in a Hub corpus.
        streaming: Read while iterating, without a memory-mapped copy.
        cache_dir: Where the copy goes; by default the cache of `datasets`.
        limit: Take the first `limit` usable pairs (tiny_world: that many are made).

    Returns:
        A memory-mapped `Dataset`, or an `IterableDataset` when streaming, and the counts.

    Raises:
        ValueError: If something is not as it must be, naming file, row and remedy: no such file,
            split or column, a row that is malformed or not text, bytes that are not UTF-8, plain
            text with more lines on one side, or nothing left to use. Streamed data raises it when
            the row is reached.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit ({limit}) must be at least 1; leave it out to take every pair")
    hub_options = {
        option: value
        for option, value in (("name", name), ("revision", revision), ("data_dir", data_dir))
        if value is not None
    }
    if is_hub_id(corpus):
        origin = _hub(
            str(corpus), source_lang, target_lang, split, hub_options, streaming, cache_dir
        )
    elif hub_options:
        raise ValueError(f"{', '.join(hub_options)}: only for a corpus on the Hub, not {corpus}")
    elif corpus == "tiny_world":
        origin = _tiny_world(source_lang, target_lang, split, limit)
    elif not isinstance(corpus, str | Path):
        origin = _text_files([Path(path) for path in corpus], source_lang, target_lang)
    elif (path := Path(corpus).expanduser()).is_dir():
        origin = _folder(path, source_lang, target_lang, split)
    else:
        origin = _files([path])

    report = CorpusReport(origin.name)
    pairs = partial(_usable_pairs, origin, source_lang, target_lang, limit, report)
    if streaming:
        return IterableDataset.from_generator(pairs, features=_FEATURES), report
    identity = (_READER_VERSION, origin.identity, source_lang, target_lang, limit)
    folder = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / "vanilla_transformer"
    stem = folder / hashlib.sha256(repr(identity).encode()).hexdigest()
    return _memory_map(pairs, stem, report, _FEATURES)


def hold_out(pairs: Dataset, count: int) -> tuple[Dataset, Dataset]:
    """Sets sentences aside to validate on, from a corpus that has no split for it.

    A source sentence goes with all its translations: none of those held out is also trained on.
    The choice is made by hash, so it does not depend on the order of the corpus, which may be
    sorted by length.

    Args:
        pairs: As `load_parallel` gives them.
        count: How many different source sentences to hold out.

    Returns:
        The pairs to train on and those held out, each in the order of the corpus.

    Raises:
        ValueError: The corpus has too few different source sentences.
    """
    sources = list(pairs["source"])
    distinct = set(sources)
    if not 1 <= count < len(distinct):
        raise ValueError(
            f"held_out ({count}) must be at least 1 and below the {len(distinct)} different source "
            "sentences of the training data"
        )
    chosen = set(sorted(distinct, key=lambda text: hashlib.sha256(text.encode()).digest())[:count])
    rows: dict[bool, list[int]] = {False: [], True: []}
    for row, source in enumerate(sources):
        rows[source in chosen].append(row)
    return pairs.select(rows[False]), pairs.select(rows[True])


# Rows to pairs


def _usable_pairs(
    origin: _Origin, source_lang: str, target_lang: str, limit: int | None, report: CorpusReport
) -> Iterator[dict[str, str]]:
    """Yield the pairs that have text on both sides, counting in `report` from zero."""
    report.read = report.kept = 0
    report.skipped.clear()
    for where, number, row in origin.records():
        report.read += 1
        sides = _sides(row, source_lang, target_lang, where, number)
        source, target = (_text(value, where, number) for value in sides)
        if not source.strip() or not target.strip():
            reason = "empty target" if source.strip() else "empty source"
            report.skipped[reason] = report.skipped.get(reason, 0) + 1
            continue
        report.kept += 1
        yield {"source": source, "target": target}
        if report.kept == limit:
            break
    if report.kept == 0:
        counts = ", ".join(f"{count} {reason}" for reason, count in report.skipped.items())
        raise ValueError(
            f"{origin.name}: no pair with text on both sides among {report.read} rows"
            + (f" ({counts})" if counts else "")
            + "; check the corpus and the languages"
        )


def _sides(
    row: Mapping[str, Any], source_lang: str, target_lang: str, where: str, number: int
) -> tuple[object, object]:
    """Find the two sides in a row of any of the schemas."""
    columns = row.get("translation")
    if not isinstance(columns, Mapping):
        columns = row
    if source_lang in columns and target_lang in columns:
        return columns[source_lang], columns[target_lang]
    if "source" in row and "target" in row:
        return row["source"], row["target"]
    missing = [lang for lang in (source_lang, target_lang) if lang not in columns]
    message = f"{where} {number}: no column {' and '.join(map(repr, missing))}"
    message += f" among {', '.join(map(repr, columns))}"
    guesses = [
        guess for lang in missing for guess in difflib.get_close_matches(lang, columns, 1, 0.3)
    ]
    if guesses:
        message += f"; did you mean {' and '.join(map(repr, guesses))}?"
    raise ValueError(
        f"{message} Name the languages as the columns are named, or the columns 'source' and "
        "'target'."
    )


def _text(value: object, where: str, number: int) -> str:
    """Check that a side is text; a null counts as empty."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(
            f"{where} {number}: {value!r} is of type {type(value).__name__} where text is due; "
            "make it a string or remove the row"
        )
    # JSON can spell half a character ("\ud83d"), which no file can hold.
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where} {number}: {value!r} contains half of a surrogate pair; remove it"
        ) from error
    return value


def _memory_map(
    examples: Callable[[], Iterator[dict[str, Any]]], stem: Path, report: Report, features: Features
) -> tuple[Dataset, Report]:
    """Write the examples to an Arrow file, unless there is one already, and map it."""
    arrow_file, report_file = stem.with_suffix(".arrow"), stem.with_suffix(".json")
    if not arrow_file.exists():
        stem.parent.mkdir(parents=True, exist_ok=True)
        # Written aside and renamed, the Arrow file last: where it stands, both are whole.
        with tempfile.TemporaryDirectory(dir=stem.parent, prefix=".tmp-") as aside:
            written = Path(aside) / "examples.arrow"
            schema = features.arrow_schema
            with pa.OSFile(str(written), "wb") as file, pa.ipc.new_stream(file, schema) as stream:
                remaining = examples()
                while rows := list(islice(remaining, 1000)):
                    stream.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema))
            counts = Path(aside) / "report.json"
            counts.write_text(json.dumps(asdict(report)), encoding="utf-8")
            os.replace(counts, report_file)
            os.replace(written, arrow_file)
    counted = type(report)(**json.loads(report_file.read_text(encoding="utf-8")))
    return Dataset.from_file(str(arrow_file)), counted


# Where rows come from


def _tiny_world(source_lang: str, target_lang: str, split: str, limit: int | None) -> _Origin:
    """Rows of the embedded corpus."""
    if {source_lang, target_lang} != {"en", "de"}:
        raise ValueError(
            f"tiny_world has English and German, not {source_lang!r} and {target_lang!r}; "
            "use 'en' and 'de'"
        )
    if split not in _TINY_WORLD_SIZES:
        raise ValueError(_no_such_split("tiny_world", split, _TINY_WORLD_SIZES))
    count = limit or _TINY_WORLD_SIZES[split]
    identity = ("tiny_world", split, count, _file_identity(Path(tiny_world.__file__)))
    records = partial(_tiny_world_rows, cast(tiny_world.Split, split), count)
    return _Origin(f"tiny_world {split}", records, identity)


def _tiny_world_rows(split: tiny_world.Split, count: int) -> Iterator[Record]:
    """Generated pairs, as rows with columns named by language."""
    for number, pair in enumerate(tiny_world.generate_translation(split, count), start=1):
        row = {"en": pair["source"], "de": pair["target"]}
        yield f"tiny_world {split}, pair", number, row


def is_hub_id(corpus: str | Path | Sequence[Path]) -> bool:
    """Tell a Hub id from a path, also from a path to nowhere."""
    if not isinstance(corpus, str) or corpus == "tiny_world" or Path(corpus).exists():
        return False
    looks_local = corpus.startswith(".") or Path(corpus).suffix in _READERS
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?", corpus) is not None and not looks_local


def _hub(
    corpus: str,
    source_lang: str,
    target_lang: str,
    split: str,
    options: dict[str, str],
    streaming: bool,
    cache_dir: str | Path | None,
) -> _Origin:
    """Rows of a corpus on the Hub."""
    # The Hub has each pair of languages once, with English last.
    other = target_lang if source_lang == "en" else source_lang
    pair = f"{other}-en" if "en" in (source_lang, target_lang) else f"{source_lang}-{target_lang}"
    short_names: dict[str, tuple[str, dict[str, str]]] = {
        "wmt14": ("wmt/wmt14", {"name": pair}),
        "wmt16": ("wmt/wmt16", {"name": pair}),
        "iwslt2017": (
            "IWSLT/iwslt2017",
            {"data_dir": f"iwslt2017-{pair}", "revision": "refs/convert/parquet"},
        ),
        # 160,239 + 7,283 + 6,750 pairs, as fairseq's prepare-iwslt14.sh leaves them before BPE:
        # tokenised and lower-cased.
        "iwslt14": (
            "bbaaaa/iwslt14-de-en-preprocess",
            {"data_dir": pair, "revision": "refs/convert/parquet"},
        ),
    }
    hub_id, defaults = corpus, {}
    for short_name, (full_id, needed) in short_names.items():
        if corpus in (short_name, full_id):
            hub_id, defaults = full_id, needed
    dataset = _hub_dataset(corpus, hub_id, split, defaults | options, streaming, cache_dir)
    return _dataset(f"{hub_id} {split}", dataset)


def _hub_dataset(
    corpus: str,
    hub_id: str,
    split: str,
    options: dict[str, str],
    streaming: bool,
    cache_dir: str | Path | None,
) -> Dataset | IterableDataset:
    """A split from the Hub; `corpus` is what the user called it."""
    try:
        return datasets.load_dataset(
            hub_id,
            split=split,
            streaming=streaming,
            cache_dir=str(cache_dir) if cache_dir else None,
            **options,
        )
    except (FileNotFoundError, ConnectionError) as error:
        raise ValueError(
            f"{corpus} is neither a local file or folder nor a data set that the Hub gave "
            f"({error}); check the path or id, and the network"
        ) from error


def _dataset(name: str, dataset: Dataset | IterableDataset) -> _Origin:
    """Rows of a data set of `datasets`."""
    records = partial(_dataset_rows, name, dataset)
    return _Origin(name, records, (name, getattr(dataset, "_fingerprint", None)))


def _dataset_rows(name: str, dataset: Dataset | IterableDataset) -> Iterator[Record]:
    """Rows of a data set, numbered from 0."""
    rows: Iterable[Mapping[str, Any]] = dataset
    if isinstance(dataset, Dataset):
        # Ten times as fast as one row at a time.
        tables = dataset.with_format("arrow").iter(batch_size=1000)
        rows = (row for table in tables for row in table.to_pylist())
    for number, row in enumerate(rows):
        yield f"{name}, row", number, row


def _folder(folder: Path, source_lang: str, target_lang: str, split: str) -> _Origin:
    """Rows of one split of a folder."""
    if (saved := _saved_to_disk(folder, split)) is not None:
        return saved

    pairs = (f"{source_lang}-{target_lang}", f"{target_lang}-{source_lang}")
    # A clone of a Hub repository keeps its files in data/ or in a folder for the pair.
    places = (folder, *(folder / below for below in ("data", *pairs)))
    found = _files_by_split(places, _READERS)
    # "train_en-de" goes before "train", which may hold other languages.
    for stem in (*(f"{split}_{pair}" for pair in pairs), split):
        if stem in found:
            return _files(_of_one_kind(folder, stem, found[stem]))

    sides = [folder / f"{split}.{lang}" for lang in (source_lang, target_lang)]
    if any(side.is_file() for side in sides):
        return _text_files(sides, source_lang, target_lang)
    texts = {path.stem for path in folder.glob(f"*.{source_lang}")}
    wanted = f"{folder} ({pairs[0]})"
    raise ValueError(_no_such_split(wanted, split, {*found, *texts}))


def _saved_to_disk(folder: Path, split: str) -> _Origin | None:
    """Rows of what `save_to_disk` wrote; None if it did not write this folder."""
    if not any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return None
    saved = datasets.load_from_disk(str(folder))
    if isinstance(saved, Dataset):
        return _dataset(str(folder), saved)
    if split not in saved:
        raise ValueError(_no_such_split(folder, split, saved))
    return _dataset(f"{folder} {split}", saved[split])


def _files_by_split(places: Iterable[Path], kinds: Collection[str]) -> dict[str, list[Path]]:
    """Files of folders by their names, `<split>.<kind>`, without the numbers of shards."""
    found: dict[str, list[Path]] = {}
    for place in places:
        for path in sorted(place.iterdir()) if place.is_dir() else ():
            if path.suffix in kinds:
                stem = re.sub(r"-\d{5}-of-\d{5}(-\w+)?$", "", path.stem)
                found.setdefault(stem, []).append(path)
    return found


def _of_one_kind(folder: Path, split: str, paths: list[Path]) -> list[Path]:
    """Check that a split is there in one kind of file only."""
    if len(kinds := {path.suffix for path in paths}) > 1:
        raise ValueError(
            f"{folder} has {split} as {', '.join(sorted(kinds))}; name the file to read"
        )
    return paths


def _no_such_split(corpus: object, split: str, present: Collection[str]) -> str:
    """Message for a split that is not there."""
    return f"{corpus} has no split {split!r}; it has {', '.join(sorted(present)) or 'none'}"


def _files(paths: list[Path]) -> _Origin:
    """Rows of one file, or of the shards of one split in order."""
    for path in paths:
        if not path.is_file():
            raise ValueError(f"{path}: no such file or folder; check the path")
        if path.suffix not in _READERS:
            raise ValueError(
                f"{path}: the kind of file is told by its name, one of {', '.join(_READERS)}; "
                "for plain text give two files, source and target"
            )
    name = str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
    return _Origin(name, partial(_file_rows, paths), tuple(map(_file_identity, paths)))


def _file_rows(paths: list[Path]) -> Iterator[Record]:
    """Rows of one file after the other."""
    for path in paths:
        yield from _READERS[path.suffix](path)


def _text_files(paths: list[Path], source_lang: str, target_lang: str) -> _Origin:
    """Rows of two plain-text files with a sentence a line."""
    if len(paths) != 2:
        raise ValueError(
            f"plain text comes as two files, source and target, not {len(paths)}: "
            f"{', '.join(map(str, paths))}"
        )
    for path in paths:
        if not path.is_file():
            raise ValueError(f"{path}: no such file; plain text needs one file for each language")
    records = partial(_text_rows, paths[0], paths[1], source_lang, target_lang)
    return _Origin(f"{paths[0]} and {paths[1]}", records, tuple(map(_file_identity, paths)))


def _text_rows(
    source_path: Path, target_path: Path, source_lang: str, target_lang: str
) -> Iterator[Record]:
    """Lines of two files side by side."""
    where = f"{source_path} and {target_path}, line"
    sides = zip_longest(_lines(source_path), _lines(target_path))
    for number, (source, target) in enumerate(sides, start=1):
        if source is None or target is None:
            counts = [sum(1 for _ in _lines(path)) for path in (source_path, target_path)]
            raise ValueError(
                f"{source_path} has {counts[0]} lines and {target_path} has {counts[1]}; line n of "
                "one must be the translation of line n of the other"
            )
        yield where, number, {source_lang: _bare(source), target_lang: _bare(target)}


def _file_identity(path: Path) -> tuple[str, int, int]:
    """What changes when a file does."""
    stat = path.stat()
    return str(path.resolve()), stat.st_size, stat.st_mtime_ns


# Readers: one a kind of file


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 file with their ends, which are newlines only."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path}, line {number}, byte {error.start + 1}: "
                    f"0x{line[error.start]:02x} is not UTF-8; "
                    "convert the file (iconv -t utf-8) or remove the line"
                ) from error
            yield text


def _bare(line: str) -> str:
    """Take off the end of a line, Unix or Windows."""
    return line.removesuffix("\n").removesuffix("\r")


def _parquet_rows(path: Path) -> Iterator[Record]:
    """Rows of a Parquet file, numbered from 0 as `datasets` does."""
    try:
        with pq.ParquetFile(path) as file:
            rows = (row for batch in file.iter_batches(1000) for row in batch.to_pylist())
            for number, row in enumerate(rows):
                yield f"{path}, row", number, row
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not a whole Parquet file ({error}); get it again") from error


def _json_rows(path: Path) -> Iterator[Record]:
    """Objects of a JSON file: a list of them, or one a line (empty lines are passed over)."""
    if path.suffix == ".json" and (text := "".join(_lines(path))).lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from error
        for number, row in enumerate(rows):
            yield f"{path}, row", number, _json_object(row, path, "row", number)
        return
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}, line {number}: not JSON ({error.msg} at character {error.colno}); "
                "every line must be one whole object"
            ) from error
        yield f"{path}, line", number, _json_object(row, path, "line", number)


def _json_object(row: object, path: Path, unit: str, number: int) -> Mapping[str, Any]:
    """Check that a JSON row is an object."""
    if not isinstance(row, dict):
        raise ValueError(
            f"{path}, {unit} {number}: {type(row).__name__} where an object is due; "
            'write {"source": "...", "target": "..."}'
        )
    return row


def _csv_rows(path: Path) -> Iterator[Record]:
    """Rows of a CSV file under its header, quoted as RFC 4180 says."""
    reader = csv.reader(_lines(path), strict=True)
    try:
        yield from _table_rows(path, ((reader.line_num, fields) for fields in reader))
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {reader.line_num}: {error}; look for a quote that is not closed or not "
            "doubled"
        ) from error


def _tsv_rows(path: Path) -> Iterator[Record]:
    """Rows of a TSV file under its header; quotes are text, as in IANA's definition."""
    lines = enumerate(_lines(path), start=1)
    yield from _table_rows(path, ((number, _bare(line).split("\t")) for number, line in lines))


def _table_rows(path: Path, rows: Iterator[tuple[int, list[str]]]) -> Iterator[Record]:
    """Name the fields of each row by the first one, passing over empty lines."""
    _, header = next(rows, (0, []))
    for column, count in Counter(header).items():
        if count > 1:
            raise ValueError(f"{path}, line 1: column {column!r} comes {count} times; rename one")
    for number, fields in rows:
        if fields in ([], [""]):
            continue
        if len(fields) != len(header):
            raise ValueError(
                f"{path}, line {number}: {len(fields)} fields where the header has {len(header)} "
                f"({', '.join(header)}); the first line must name the columns, and a field that "
                "contains the separator needs another kind of file"
            )
        yield f"{path}, line", number, dict(zip(header, fields, strict=True))


_READERS: dict[str, Callable[[Path], Iterator[Record]]] = {
    ".parquet": _parquet_rows,
    ".jsonl": _json_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".tsv": _tsv_rows,
}
