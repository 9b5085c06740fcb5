"""Natural language inference from the Hub, local files or the embedded corpus, in one schema.

Every set comes out as `id`, `premise`, `hypothesis`, `label` and the annotation that it has, and
its label column says what each number means. Two orders of the three labels are in circulation,
and a model trained on the wrong one looks merely bad: here a number is read by the names that come
with it, and a set of bare numbers is refused until it is told what they mean.
"""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, Features, List, Value

from . import readers, tiny_world
from .readers import CorpusReport, Origin, is_hub_id

# The position in the list is the id.
LABELS = ("entailment", "neutral", "contradiction")
TWO_WAY_LABELS = ("entailment", "not_entailment")

# SNLI, MultiNLI, SICK and HANS come from their authors as tables that are called .txt.
_TABLES = {**readers.READERS, ".txt": readers.read_tsv}

# What the sets call their columns; the first that a row has is read.
_PREMISE = ("premise", "sentence1", "sentence_A", "context")
_HYPOTHESIS = ("hypothesis", "sentence2", "sentence_B")
_LABEL = ("label", "gold_label", "entailment_label", "entailment_judgment")
_ID = ("id", "idx", "index", "pairID", "pair_ID", "uid")
_ANNOTATIONS = ("genre", "source", "heuristic", "subcase", "template", "category", "language")
_PHENOMENA = ("phenomena", "phenomenon")

# Spellings after lower-casing and with "-" and blanks as "_".
_SPELLINGS = {
    **dict.fromkeys(("entailment", "entails", "entailed", "entail", "e"), "entailment"),
    **dict.fromkeys(("neutral", "n"), "neutral"),
    # "contradictory" is how XNLI's training text spells it.
    **dict.fromkeys(
        ("contradiction", "contradicts", "contradictory", "contradicted", "contradict", "c"),
        "contradiction",
    ),
    **dict.fromkeys(
        ("not_entailment", "non_entailment", "nonentailment", "not_entailed", "no_entailment"),
        "not_entailment",
    ),
}
# No gold label: no majority among the annotators (SNLI), or a test set with hidden labels (GLUE).
_UNLABELLED = ("-1", "-", "")

# Short names: Hub id, and the configuration.
_HUB_SETS: dict[str, tuple[str, dict[str, str]]] = {
    "snli": ("stanfordnlp/snli", {}),
    "multi_nli": ("nyu-mll/multi_nli", {}),
    "mnli": ("nyu-mll/multi_nli", {}),
    "anli": ("facebook/anli", {}),
    "xnli": ("facebook/xnli", {}),
    "rte": ("nyu-mll/glue", {"name": "rte"}),
    "sick": ("RobZamp/sick", {}),
    "hans": ("jhu-cogsci/hans", {}),
}
# Their main branch is a script, which `datasets` no longer runs; the Hub made Parquet of it.
_SCRIPTS = ("RobZamp/sick", "jhu-cogsci/hans")
_ROUNDS = ("r1", "r2", "r3")
_TINY_WORLD_SIZES = {"train": 24_000, "validation": 1_200, "test": 1_200}
_ROWS_NAMED = 5


@dataclass
class InferenceReport(CorpusReport):
    """What was read, kept and skipped, as in `CorpusReport`, and which labels were met.

    Attributes:
        skipped_rows: Reason -> where the first few of them stand.
        labels: Label as the set spells it -> what it was read as.
        per_label: Meaning -> number of rows kept.
    """

    skipped_rows: dict[str, list[str]] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    per_label: dict[str, int] = field(default_factory=dict)

    def skip(self, reason: str, where: str) -> None:
        """Count a row that is left out."""
        self.skipped[reason] = self.skipped.get(reason, 0) + 1
        rows = self.skipped_rows.setdefault(reason, [])
        if len(rows) < _ROWS_NAMED:
            rows.append(where)


def load_inference(
    corpus: str | Path,
    split: str = "train",
    *,
    name: str | None = None,
    revision: str | None = None,
    data_dir: str | None = None,
    label_names: Sequence[str] | None = None,
    keep_unlabelled: bool = False,
    cache_dir: str | Path | None = None,
    limit: int | None = None,
) -> tuple[Dataset, InferenceReport]:
    """Load pairs of premise and hypothesis with their relation.

    A row with a blank side is skipped and counted, as is one without a gold label (-1 or "-").
    Text is otherwise kept as it is.

    Args:
        corpus: One of

            - "tiny_world", the embedded corpus;
            - a Hub id; `snli`, `multi_nli` (or `mnli`), `anli`, `xnli`, `rte`, `sick` and `hans`
              stand for the namespaced ids. `anli` wants `name="r1"` (r2, r3), `xnli` the language;
              MultiNLI's splits are `validation_matched` and `validation_mismatched`;
            - a folder with `<split>.<kind>` or its shards, also in `data/`, or what
              `save_to_disk` wrote;
            - a file: .parquet, .jsonl, .json, .csv, .tsv, or a table with a header called .txt, as
              the authors of SNLI, MultiNLI, SICK and HANS give them.

            Columns may be called premise, sentence1, sentence_A or context; hypothesis, sentence2
            or sentence_B; label, gold_label, entailment_label or entailment_judgment.
        split: Part of the set. A file is one split and is taken whole, except that of SICK, whose
            column SemEval_set tells the three apart.
        name: Configuration of a Hub set.
        revision: Revision of a Hub set.
        data_dir: Folder in a Hub set.
        label_names: What the numbers 0, 1, ... mean, for a set that does not say so itself:
            ("entailment", "neutral", "contradiction") is GLUE's order.
        keep_unlabelled: Keep rows without a gold label, with label -1, to predict them.
        cache_dir: Where a Hub set goes; by default the cache of `datasets`.
        limit: Take the first `limit` usable rows (tiny_world: that many are made).

    Returns:
        The set and the counts. Columns: `id`, text, the set's own or else the number of the row;
        `premise`; `hypothesis`; `label`, whose `ClassLabel` has the names in the order `LABELS`,
        or `TWO_WAY_LABELS` for a set with two labels; and those of `genre`, `source`, `heuristic`,
        `subcase`, `template`, `category`, `language` (text) and `phenomena` (a list) that the
        set has.

    Raises:
        ValueError: If something is not as it must be, naming file, row and remedy: no such file,
            split or column, text that is none, an unknown label, numbers without names, names
            that contradict the set's own, labels of both kinds of set, or nothing left to use.
    """
    options = readers.check_options(
        corpus, limit, {"name": name, "revision": revision, "data_dir": data_dir}, kind="set"
    )
    own_names: Sequence[str] | None
    if is_hub_id(corpus):
        origin, own_names = _hub(str(corpus), split, options, cache_dir)
    elif corpus == "tiny_world":
        generate = tiny_world.generate_inference
        origin = readers.find_tiny_world(split, limit, _TINY_WORLD_SIZES, "pair", generate)
        own_names = LABELS
    else:
        origin, own_names = _local(Path(corpus).expanduser(), split)

    names = _names_of_numbers(origin.name, own_names, label_names)
    report = InferenceReport(origin.name, revision=origin.revision)
    kept: list[dict[str, Any]] = []
    for where, number, row in origin.records():
        report.read += 1
        example = _example(row, where, number, split, names, keep_unlabelled, report)
        if example is None:
            continue
        kept.append(example)
        if len(kept) == limit:
            break
    report.kept = len(kept)
    if not kept:
        counts = ", ".join(f"{count} {reason}" for reason, count in report.skipped.items())
        raise ValueError(
            f"{origin.name}: nothing to use among {report.read} rows"
            + (f" ({counts})" if counts else "")
        )
    return _as_dataset(kept, names, report), report


# Rows to examples


def _example(
    row: Mapping[str, Any],
    where: str,
    number: int,
    split: str,
    names: Sequence[str] | None,
    keep_unlabelled: bool,
    report: InferenceReport,
) -> dict[str, Any] | None:
    """Read one row; None, and counted, if it is not to be used."""
    spot = f"{where} {number}"
    part = row.get("SemEval_set")
    if part is not None and part != {"validation": "TRIAL"}.get(split, split.upper()):
        report.skip("of another split", spot)
        return None
    premise = readers.check_text(_column(row, _PREMISE, spot), where, number)
    hypothesis = readers.check_text(_column(row, _HYPOTHESIS, spot), where, number)
    for side, text in (("premise", premise), ("hypothesis", hypothesis)):
        if not text.strip():
            report.skip(f"empty {side}", spot)
            return None
    # A test set whose labels are hidden may have no column for them.
    has_label = any(column in row for column in _LABEL) or not keep_unlabelled
    found = _column(row, _LABEL, spot) if has_label else None
    label = _label(found, names, spot)
    if label is None and not keep_unlabelled:
        report.skip("no gold label", spot)
        return None
    if label is not None:
        report.labels[str(found)] = label
        report.per_label[label] = report.per_label.get(label, 0) + 1
    example: dict[str, Any] = {
        "id": str(next((row[column] for column in _ID if row.get(column) is not None), number)),
        "premise": premise,
        "hypothesis": hypothesis,
        "label": label,
    }
    for column in _ANNOTATIONS:
        if row.get(column) not in (None, ""):
            example[column] = str(row[column])
    for column in _PHENOMENA:
        if column in row:
            example["phenomena"] = _phenomena(row[column])
    return example


def _column(row: Mapping[str, Any], aliases: Sequence[str], where: str) -> object:
    """The value under the first alias that the row has."""
    for alias in aliases:
        if alias in row:
            return row[alias]
    raise ValueError(
        f"{where}: no column {aliases[0]!r} among {', '.join(map(repr, row))}; it may also be "
        f"called {' or '.join(aliases[1:])}"
    )


def _phenomena(value: object) -> list[str]:
    """A list of phenomena; a table writes it as text with ";", "," or "|" between them."""
    if isinstance(value, list | tuple):
        return [str(one) for one in value]
    return [one.strip() for one in re.split(r"[;,|]", str(value or "")) if one.strip()]


def _label(found: object, names: Sequence[str] | None, where: str) -> str | None:
    """What a label means; None where there is none."""
    text = "" if found is None else str(found).strip()
    if text.lower() in _UNLABELLED:
        return None
    if isinstance(found, bool) or not re.fullmatch(r"\d+", text):
        meaning = label_meaning(text)
        if meaning is None:
            guess = difflib.get_close_matches(text.lower(), _SPELLINGS, 1)
            raise ValueError(
                f"{where}: unknown label {found!r}"
                + (f", did you mean {guess[0]!r}?" if guess else ";")
                + f" use {', '.join((*LABELS, TWO_WAY_LABELS[1]))}, or '-' where there is none"
            )
        return meaning
    if names is None:
        raise ValueError(
            f"{where}: the label is the number {text}, and nothing says what it means: sets come "
            "with entailment first and with contradiction first; look at a few rows and give "
            f"label_names={LABELS}, or the order that is right"
        )
    if int(text) >= len(names):
        raise ValueError(
            f"{where}: label {text} is out of range; there are {len(names)}: {', '.join(names)}"
        )
    return names[int(text)]


def label_meaning(text: str) -> str | None:
    """The label that a spelling stands for ("Not-Entailment" is not_entailment), or None."""
    return _SPELLINGS.get(re.sub(r"[\s_-]+", "_", text.strip().lower()))


def _names_of_numbers(
    origin: str, own: Sequence[str] | None, given: Sequence[str] | None
) -> tuple[str, ...] | None:
    """What the numbers mean, by the set itself or by whoever loads it; None if nobody says."""
    checked: list[tuple[str, ...] | None] = []
    for who, names in (("label_names", given), (f"{origin}: its label names", own)):
        meanings = tuple(filter(None, map(label_meaning, names or ())))
        if names is None or (who != "label_names" and given and not meanings):
            # Names such as "0" and "LABEL_1" say nothing: whoever loads the set may.
            checked.append(None)
            continue
        if len(meanings) != len(names) or sorted(meanings) not in (
            sorted(LABELS),
            sorted(TWO_WAY_LABELS),
        ):
            raise ValueError(
                f"{who} ({', '.join(map(repr, names))}) must be {', '.join(LABELS)}, or "
                f"{', '.join(TWO_WAY_LABELS)}, each once and in the order of the numbers; if the "
                "set names its labels otherwise, give label_names"
            )
        checked.append(meanings)
    given_names, own_names = checked
    if given_names and own_names and given_names != own_names:
        raise ValueError(
            f"label_names ({', '.join(given_names)}) contradict {origin}, which says "
            f"{', '.join(own_names)}; leave label_names out"
        )
    return given_names or own_names


def _as_dataset(
    kept: list[dict[str, Any]], names: Sequence[str] | None, report: InferenceReport
) -> Dataset:
    """Put the examples under the labels of their kind of set."""
    meanings = {*(names or ()), *report.per_label}
    label_names = TWO_WAY_LABELS if "not_entailment" in meanings else LABELS
    if not meanings <= set(label_names):
        raise ValueError(
            f"{report.corpus} has labels of two kinds of set, {', '.join(sorted(meanings))}; "
            f"use {', '.join(LABELS)}, or {', '.join(TWO_WAY_LABELS)}"
        )
    present = set().union(*kept)
    features = {
        "id": Value("string"),
        "premise": Value("string"),
        "hypothesis": Value("string"),
        "label": ClassLabel(names=list(label_names)),
        **{column: Value("string") for column in _ANNOTATIONS if column in present},
        **({"phenomena": List(Value("string"))} if "phenomena" in present else {}),
    }
    columns: dict[str, list[Any]] = {
        column: [example.get(column) for example in kept] for column in features
    }
    columns["label"] = [
        -1 if label is None else label_names.index(label) for label in columns["label"]
    ]
    report.per_label = {label: report.per_label.get(label, 0) for label in label_names}
    return Dataset.from_dict(columns, features=Features(features))


# Where rows come from, and the label names that come with them


def _hub(
    corpus: str, split: str, options: dict[str, str], cache_dir: str | Path | None
) -> tuple[Origin, Sequence[str] | None]:
    """Rows of a set on the Hub."""
    hub_id, defaults = _HUB_SETS.get(corpus, (corpus, {}))
    if hub_id in _SCRIPTS:
        defaults = {"revision": "refs/convert/parquet"}
    options = defaults | options
    if hub_id == "facebook/anli" and not split.endswith(_ROUNDS):
        # Its rounds are splits: train_r1, dev_r1, test_r1.
        anli_round = options.pop("name", None)
        if anli_round not in _ROUNDS:
            raise ValueError(f"name ({anli_round}) must be one of {', '.join(_ROUNDS)} for ANLI")
        split = f"{'dev' if split == 'validation' else split}_{anli_round}"
    if hub_id == "facebook/xnli" and "name" not in options:
        raise ValueError("XNLI comes by language; give name='en', name='de', ...")
    dataset = cast(Dataset, readers.load_from_hub(corpus, hub_id, split, options, False, cache_dir))
    if hub_id == "facebook/xnli":
        dataset = dataset.add_column("language", [options["name"]] * len(dataset))
    return _of_dataset(f"{hub_id} {split}", dataset)


def _local(path: Path, split: str) -> tuple[Origin, Sequence[str] | None]:
    """Rows of a file, or of one split of a folder."""
    paths = [path]
    if path.is_dir():
        if (saved := readers.load_saved(path, split)) is not None:
            return _of_dataset(*saved)
        paths = readers.find_split_files(path, split, _TABLES)
    origin = readers.from_files(paths, _TABLES)
    # Shards of one set agree, and where they do not, a number has no one meaning.
    all_names = {_parquet_names(one) for one in paths if one.suffix == ".parquet"} or {None}
    if len(all_names) > 1:
        raise ValueError(f"{path}: the files of {split} name their labels differently")
    if len(paths) > 1:
        origin = replace(origin, name=str(path / split))
    return origin, all_names.pop()


def _of_dataset(name: str, dataset: Dataset) -> tuple[Origin, Sequence[str] | None]:
    """Rows and label names of a data set of `datasets`."""
    kinds = [dataset.features[column] for column in _LABEL if column in dataset.features]
    names = kinds[0].names if kinds and isinstance(kinds[0], ClassLabel) else None
    return readers.from_dataset(name, dataset), names


def _parquet_names(path: Path) -> tuple[str, ...] | None:
    """Label names that `datasets` wrote into the schema of a Parquet file."""
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (pa.ArrowException, OSError):
        # The reader of the rows meets the same, and says what to do.
        return None
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        # Written by something else, or for something else.
        return None
    for column in _LABEL:
        feature = features.get(column) if isinstance(features, dict) else None
        names = feature.get("names") if isinstance(feature, dict) else None
        if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
            return tuple(names)
    return None
