"""Reads the rows of any supported file, folder, data set or Hub id, and keeps what is made of them.

Each task's corpora have a schema of their own; what is the same for all of them is here: where
rows come from, how an error names them, and the memory-mapped copy.
"""

import codecs
import csv
import hashlib
import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, cast

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, IterableDataset

from . import tiny_world

# What an error can point at: "train.jsonl, line", 12, and the row found there.
Record = tuple[str, int, Mapping[str, Any]]

Reader = Callable[[Path], Iterator[Record]]
RowGenerator = Callable[[tiny_world.Split, int], Iterable[Mapping[str, Any]]]


@dataclass
class CorpusReport:
    """What was read of a corpus, what was kept, and why the rest was skipped.

    For streamed data the counts are those of the latest pass in this process, filled in as it
    is consumed. `revision` is the commit of a corpus on the Hub.
    """

    corpus: str
    read: int = 0
    kept: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    revision: str | None = None


Report = TypeVar("Report", bound=CorpusReport)


@dataclass(frozen=True)
class Origin:
    """Where rows come from.

    `records` starts a pass over the rows; `identity` differs whenever their content does.
    """

    name: str
    records: Callable[[], Iterator[Record]]
    identity: tuple[object, ...]
    revision: str | None = None


# What loaders are asked


def is_hub_id(corpus: str | Path | Sequence[Path]) -> bool:
    """Tell a Hub id from a path, also from a path to nowhere."""
    if not isinstance(corpus, str) or corpus == "tiny_world" or Path(corpus).exists():
        return False
    looks_local = corpus.startswith(".") or Path(corpus).suffix in READERS
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?", corpus) is not None and not looks_local


def check_options(
    corpus: str | Path | Sequence[Path],
    limit: int | None,
    options: Mapping[str, str | None],
    *,
    kind: str = "corpus",
    unit: str = "pair",
) -> dict[str, str]:
    """Check the limit and the options of a Hub corpus that a loader was given; None is left out.

    `kind` and `unit` are what the loader calls a corpus and an example.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit ({limit}) must be at least 1; leave it out to take every {unit}")
    given = {option: value for option, value in options.items() if value is not None}
    if given and not is_hub_id(corpus):
        raise ValueError(f"{', '.join(given)}: only for a {kind} on the Hub, not {corpus}")
    return given


def check_text(value: object, where: str, number: int) -> str:
    """Check that a field is text; a null counts as empty."""
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


# Where rows come from


def find_tiny_world(
    split: str,
    limit: int | None,
    sizes: Mapping[str, int],
    unit: str,
    generate: RowGenerator,
) -> Origin:
    """Rows of the embedded corpus: `limit` of them, or as many as `sizes` says of the split.

    `unit` is what an error calls a row. `generate` is a function of a module, so that streamed
    rows can be pickled.
    """
    if split not in sizes:
        raise ValueError(describe_missing_split("tiny_world", split, sizes))
    count = limit or sizes[split]
    identity = ("tiny_world", split, count, file_identity(Path(tiny_world.__file__)))
    records = partial(_tiny_world_rows, split, count, unit, generate)
    return Origin(f"tiny_world {split}", records, identity)


def _tiny_world_rows(
    split: str,
    count: int,
    unit: str,
    generate: RowGenerator,
) -> Iterator[Record]:
    """Generated rows, numbered from 1."""
    for number, row in enumerate(generate(cast(tiny_world.Split, split), count), start=1):
        yield f"tiny_world {split}, {unit}", number, row


def load_from_hub(
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


def from_dataset(name: str, dataset: Dataset | IterableDataset) -> Origin:
    """Rows of a data set of `datasets`."""
    records = partial(_dataset_rows, name, dataset)
    identity = (name, getattr(dataset, "_fingerprint", None))
    return Origin(name, records, identity, _hub_commit(dataset))


def _hub_commit(dataset: Dataset | IterableDataset) -> str | None:
    """The commit of the Hub that a data set was read at; None of others, and of a stream.

    `datasets` says it nowhere but in the folder of its cache.
    """
    files = dataset.cache_files if isinstance(dataset, Dataset) else []
    folders = {Path(file["filename"]).parent.name for file in files}
    commits = [name for name in folders if re.fullmatch(r"[0-9a-f]{40}", name)]
    return commits[0] if len(commits) == 1 else None


def _dataset_rows(name: str, dataset: Dataset | IterableDataset) -> Iterator[Record]:
    """Rows of a data set, numbered from 0."""
    rows: Iterable[Mapping[str, Any]] = dataset
    if isinstance(dataset, Dataset):
        # Ten times as fast as one row at a time.
        tables = dataset.with_format("arrow").iter(batch_size=1000)
        rows = (row for table in tables for row in _whole(table, name).to_pylist())
    for number, row in enumerate(rows):
        yield f"{name}, row", number, row


def _whole(table: pa.Table, name: str) -> pa.Table:
    """The table; what is read beyond its own memory otherwise ends the process."""
    try:
        table.validate(full=True)
    except pa.ArrowException as error:
        raise ValueError(f"{name} is damaged ({error}); save it again") from error
    return table


def load_saved(folder: Path, split: str) -> tuple[str, Dataset] | None:
    """Name and rows of what `save_to_disk` wrote; None if it did not write this folder."""
    if not any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return None
    try:
        saved = datasets.load_from_disk(str(folder))
        # The rows count, not how they were last looked at.
        saved.reset_format()
    # What it does not find in its own files it does not look for.
    except Exception as error:
        raise ValueError(
            f"{folder} holds no whole data set of save_to_disk ({error!r}); save it again"
        ) from error
    if isinstance(saved, Dataset):
        return str(folder), saved
    if split not in saved:
        raise ValueError(describe_missing_split(folder, split, saved))
    return f"{folder} {split}", saved[split]


def files_by_split(places: Iterable[Path], kinds: Collection[str]) -> dict[str, list[Path]]:
    """Files of folders by their names, `<split>.<kind>`, without the numbers of shards."""
    found: dict[str, list[Path]] = {}
    for place in places:
        for path in sorted(place.iterdir()) if place.is_dir() else ():
            if path.suffix in kinds:
                stem = re.sub(r"-\d{5}-of-\d{5}(-\w+)?$", "", path.stem)
                found.setdefault(stem, []).append(path)
    return found


def find_split_files(folder: Path, split: str, kinds: Collection[str]) -> list[Path]:
    """The files of a split: `<split>.<kind>` or its shards, also in `data/`."""
    found = files_by_split((folder, folder / "data"), kinds)
    if split not in found:
        raise ValueError(describe_missing_split(folder, split, found))
    return check_one_kind(folder, split, found[split])


def check_one_kind(folder: Path, split: str, paths: list[Path]) -> list[Path]:
    """Check that a split is there in one kind of file only."""
    if len(kinds := {path.suffix for path in paths}) > 1:
        raise ValueError(
            f"{folder} has {split} as {', '.join(sorted(kinds))}; name the file to read"
        )
    return paths


def describe_missing_split(corpus: object, split: str, present: Collection[str]) -> str:
    """Message for a split that is not there."""
    return f"{corpus} has no split {split!r}; it has {', '.join(sorted(present)) or 'none'}"


def from_files(paths: list[Path], readers: Mapping[str, Reader], remedy: str = "") -> Origin:
    """Rows of one file, or of the shards of one split in order.

    `readers` go by the ends of names; `remedy` is for a name with another one.
    """
    for path in paths:
        if not path.is_file():
            raise ValueError(f"{path}: no such file or folder; check the path")
        if path.suffix not in readers:
            raise ValueError(
                f"{path}: the kind of file is told by its name, one of {', '.join(readers)}{remedy}"
            )
    name = str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
    records = partial(_file_rows, paths, readers)
    return Origin(name, records, tuple(map(file_identity, paths)))


def _file_rows(paths: list[Path], readers: Mapping[str, Reader]) -> Iterator[Record]:
    """Rows of one file after the other."""
    for path in paths:
        yield from readers[path.suffix](path)


def file_identity(path: Path) -> tuple[str, int, int]:
    """What changes when a file does."""
    stat = path.stat()
    return str(path.resolve()), stat.st_size, stat.st_mtime_ns


# Readers: one a kind of file


def read_lines(path: Path) -> Iterator[str]:
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


def strip_line_end(line: str) -> str:
    """Take off the end of a line, Unix or Windows."""
    return line.removesuffix("\n").removesuffix("\r")


def read_parquet(path: Path) -> Iterator[Record]:
    """Rows of a Parquet file, numbered from 0 as `datasets` does."""
    try:
        with pq.ParquetFile(path) as file:
            rows = (row for batch in file.iter_batches(1000) for row in batch.to_pylist())
            for number, row in enumerate(rows):
                yield f"{path}, row", number, row
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a whole Parquet file ({error}); get it again") from error


def parse_json(text: str, path: Path, line: int | None = None) -> Any:
    """The value that a JSON text is.

    Args:
        text: A whole file, or a line of one.
        path: Of the file, for errors.
        line: Number of the line, if it is one.

    Raises:
        ValueError: It is none, or one that is nested too deeply or has too long a number.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if line is None:
            raise ValueError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from error
        raise ValueError(
            f"{path}, line {line}: not JSON ({error.msg} at character {error.colno}); "
            "every line must be one whole object"
        ) from error
    except (ValueError, RecursionError) as error:
        where = path if line is None else f"{path}, line {line}"
        raise ValueError(f"{where}: JSON that cannot be read ({error}); remove it") from error


def read_json(path: Path) -> Iterator[Record]:
    """Objects of a JSON file: a list of them, or one a line (empty lines are passed over)."""
    if path.suffix == ".json" and (text := "".join(read_lines(path))).lstrip().startswith("["):
        for number, row in enumerate(parse_json(text, path)):
            yield f"{path}, row", number, _json_object(row, path, "row", number)
        return
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        row = parse_json(line, path, number)
        yield f"{path}, line", number, _json_object(row, path, "line", number)


def _json_object(row: object, path: Path, unit: str, number: int) -> Mapping[str, Any]:
    """Check that a JSON row is an object."""
    if not isinstance(row, dict):
        raise ValueError(
            f"{path}, {unit} {number}: {type(row).__name__} where an object is due; "
            'write {"source": "...", "target": "..."}'
        )
    return row


def read_csv(path: Path) -> Iterator[Record]:
    """Rows of a CSV file under its header, quoted as RFC 4180 says."""
    reader = csv.reader(read_lines(path), strict=True)
    try:
        yield from _table_rows(path, ((reader.line_num, fields) for fields in reader))
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {reader.line_num}: {error}; look for a quote that is not closed or not "
            "doubled"
        ) from error


def read_tsv(path: Path) -> Iterator[Record]:
    """Rows of a TSV file under its header; quotes are text, as in IANA's definition."""
    rows = (strip_line_end(line).split("\t") for line in read_lines(path))
    yield from _table_rows(path, enumerate(rows, start=1))


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


READERS: dict[str, Reader] = {
    ".parquet": read_parquet,
    ".jsonl": read_json,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_tsv,
}


# What is kept


def memory_map(
    examples: Callable[[], Iterator[dict[str, Any]]],
    identity: tuple[object, ...],
    cache_dir: str | Path | None,
    report: Report,
    features: Features,
) -> tuple[Dataset, Report]:
    """Write the examples to an Arrow file, unless there is one already, and map it.

    Other examples must have another `identity`. While they are made they are counted in `report`,
    which is kept beside them and returned.
    """
    folder = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / "vanilla_transformer"
    stem = folder / hashlib.sha256(repr(identity).encode()).hexdigest()
    arrow_file, report_file = stem.with_suffix(".arrow"), stem.with_suffix(".json")
    if not arrow_file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        # Written aside and renamed, the Arrow file last: where it stands, both are whole.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".tmp-") as aside:
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
    # Another commit may have the same rows.
    counted.revision = report.revision
    return Dataset.from_file(str(arrow_file)), counted
