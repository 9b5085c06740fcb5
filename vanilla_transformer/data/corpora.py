"""Parallel text from the Hub, from local files or from the embedded corpus, in one schema.

Every corpus comes out with two text columns, `source` and `target`. Rows may come in as
`translation: {"en": ..., "de": ...}` (the Hub's schema), as columns named by language, or as
columns `source` and `target`; plain text comes as two files with a sentence a line.
"""

import difflib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, IterableDataset, Value

from . import readers, tiny_world
from .readers import CorpusReport, Origin, Record, is_hub_id

__all__ = ["CorpusReport", "hold_out", "is_hub_id", "load_parallel"]

_FEATURES = Features({"source": Value("string"), "target": Value("string")})

# Raised when a reader changes what it makes of a file: older cache files are then not used.
_READER_VERSION = 1

_TINY_WORLD_SIZES = {"train": 20_000, "validation": 1_000, "test": 1_000}


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
    hub_options = readers.check_options(
        corpus, limit, {"name": name, "revision": revision, "data_dir": data_dir}
    )
    if is_hub_id(corpus):
        origin = _hub(
            str(corpus), source_lang, target_lang, split, hub_options, streaming, cache_dir
        )
    elif corpus == "tiny_world":
        origin = _tiny_world(source_lang, target_lang, split, limit)
    elif not isinstance(corpus, str | Path):
        origin = _text_files([Path(path) for path in corpus], source_lang, target_lang)
    elif (path := Path(corpus).expanduser()).is_dir():
        origin = _folder(path, source_lang, target_lang, split)
    else:
        remedy = "; for plain text give two files, source and target"
        origin = readers.from_files([path], readers.READERS, remedy)

    report = CorpusReport(origin.name, revision=origin.revision)
    pairs = partial(_usable_pairs, origin, source_lang, target_lang, limit, report)
    if streaming:
        return IterableDataset.from_generator(pairs, features=_FEATURES), report
    identity = (_READER_VERSION, origin.identity, source_lang, target_lang, limit)
    return readers.memory_map(pairs, identity, cache_dir, report, _FEATURES)


def hold_out(examples: Dataset, count: int, column: str = "source") -> tuple[Dataset, Dataset]:
    """Sets texts aside to validate on, from a corpus that has no split for it.

    A text goes with all the rows that have it, such as a sentence with its translations or a
    context with its questions: none of those held out is also trained on. The choice is made by
    hash, so it does not depend on the order of the corpus, which may be sorted by length.

    Args:
        examples: Such as `load_parallel` gives.
        count: How many different texts to hold out.
        column: Where they are.

    Returns:
        The rows to train on and those held out, each in the order of the corpus.

    Raises:
        ValueError: The corpus has too few different texts.
    """
    texts = list(examples[column])
    distinct = set(texts)
    if not 1 <= count < len(distinct):
        raise ValueError(
            f"held_out ({count}) must be at least 1 and below the {len(distinct)} different texts "
            f"in the column {column} of the training data"
        )
    chosen = set(sorted(distinct, key=lambda text: hashlib.sha256(text.encode()).digest())[:count])
    rows: dict[bool, list[int]] = {False: [], True: []}
    for row, text in enumerate(texts):
        rows[text in chosen].append(row)
    return examples.select(rows[False]), examples.select(rows[True])


# Rows to pairs


def _usable_pairs(
    origin: Origin, source_lang: str, target_lang: str, limit: int | None, report: CorpusReport
) -> Iterator[dict[str, str]]:
    """Yield the pairs that have text on both sides, counting in `report` from zero."""
    report.read = report.kept = 0
    report.skipped.clear()
    for where, number, row in origin.records():
        report.read += 1
        sides = _sides(row, source_lang, target_lang, where, number)
        source, target = (readers.check_text(value, where, number) for value in sides)
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


# Where rows come from


def _tiny_world(source_lang: str, target_lang: str, split: str, limit: int | None) -> Origin:
    """Rows of the embedded corpus."""
    if {source_lang, target_lang} != {"en", "de"}:
        raise ValueError(
            f"tiny_world has English and German, not {source_lang!r} and {target_lang!r}; "
            "use 'en' and 'de'"
        )
    return readers.find_tiny_world(split, limit, _TINY_WORLD_SIZES, "pair", _tiny_world_rows)


def _tiny_world_rows(split: tiny_world.Split, count: int) -> Iterator[dict[str, str]]:
    """Generated pairs, as rows with columns named by language."""
    for pair in tiny_world.generate_translation(split, count):
        yield {"en": pair["source"], "de": pair["target"]}


def _hub(
    corpus: str,
    source_lang: str,
    target_lang: str,
    split: str,
    options: dict[str, str],
    streaming: bool,
    cache_dir: str | Path | None,
) -> Origin:
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
    dataset = readers.load_from_hub(corpus, hub_id, split, defaults | options, streaming, cache_dir)
    return readers.from_dataset(f"{hub_id} {split}", dataset)


def _folder(folder: Path, source_lang: str, target_lang: str, split: str) -> Origin:
    """Rows of one split of a folder."""
    if (saved := readers.load_saved(folder, split)) is not None:
        return readers.from_dataset(*saved)

    pairs = (f"{source_lang}-{target_lang}", f"{target_lang}-{source_lang}")
    # A clone of a Hub repository keeps its files in data/ or in a folder for the pair.
    places = (folder, *(folder / below for below in ("data", *pairs)))
    found = readers.files_by_split(places, readers.READERS)
    # "train_en-de" goes before "train", which may hold other languages.
    for stem in (*(f"{split}_{pair}" for pair in pairs), split):
        if stem in found:
            return readers.from_files(
                readers.check_one_kind(folder, stem, found[stem]), readers.READERS
            )

    sides = [folder / f"{split}.{lang}" for lang in (source_lang, target_lang)]
    if any(side.is_file() for side in sides):
        return _text_files(sides, source_lang, target_lang)
    texts = {path.stem for path in folder.glob(f"*.{source_lang}")}
    wanted = f"{folder} ({pairs[0]})"
    raise ValueError(readers.describe_missing_split(wanted, split, {*found, *texts}))


def _text_files(paths: list[Path], source_lang: str, target_lang: str) -> Origin:
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
    return Origin(f"{paths[0]} and {paths[1]}", records, tuple(map(readers.file_identity, paths)))


def _text_rows(
    source_path: Path, target_path: Path, source_lang: str, target_lang: str
) -> Iterator[Record]:
    """Lines of two files side by side."""
    where = f"{source_path} and {target_path}, line"
    sides = zip_longest(readers.read_lines(source_path), readers.read_lines(target_path))
    for number, (source, target) in enumerate(sides, start=1):
        if source is None or target is None:
            counts = [
                sum(1 for _ in readers.read_lines(path)) for path in (source_path, target_path)
            ]
            raise ValueError(
                f"{source_path} has {counts[0]} lines and {target_path} has {counts[1]}; line n of "
                "one must be the translation of line n of the other"
            )
        yield (
            where,
            number,
            {
                source_lang: readers.strip_line_end(source),
                target_lang: readers.strip_line_end(target),
            },
        )
