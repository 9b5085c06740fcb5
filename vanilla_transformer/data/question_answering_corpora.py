"""Questions and their answers from the Hub, local files or the embedded corpus, in one schema.

Every set comes out as SQuAD has it on the Hub: `id`, `title`, `context`, `question` and `answers`,
whose `answer_start` counts characters (code points) of the context. An offset that does not point
at its answer would train a model on the wrong words in silence: here each one is checked, and is
mended by a rule that is counted, or its question is left out.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import datasets
from datasets import Dataset, Features, List, Value

from . import tiny_world
from .corpora import (
    _TINY_WORLD_SIZES,
    CorpusReport,
    Record,
    _dataset,
    _file_identity,
    _files_by_split,
    _hub_dataset,
    _json_rows,
    _lines,
    _memory_map,
    _no_such_split,
    _of_one_kind,
    _Origin,
    _parquet_rows,
    _saved_to_disk,
    _text,
    is_hub_id,
)

_FEATURES = Features(
    {
        "id": Value("string"),
        "title": Value("string"),
        "context": Value("string"),
        "question": Value("string"),
        "answers": {"text": List(Value("string")), "answer_start": List(Value("int32"))},
    }
)

# Raised when a reader changes what it makes of a file: older cache files are then not used.
_READER_VERSION = 1

_HUB_SETS: dict[str, tuple[str, dict[str, str]]] = {
    "squad": ("rajpurkar/squad", {}),
    "squad_v2": ("rajpurkar/squad_v2", {}),
    "nq_open": ("google-research-datasets/nq_open", {}),
    "trivia_qa": ("mandarjoshi/trivia_qa", {"name": "rc"}),
    "xquad": ("google/xquad", {"name": "xquad.en"}),
}

# How many rows the report names for each reason.
_NAMED_ROWS = 5


@dataclass
class QuestionsReport(CorpusReport):
    """What was read, kept and skipped, as in `CorpusReport`, and what was mended.

    `read` counts questions (for TriviaQA: a question with one of its documents). `mended` counts
    by rule; `rows` names the first rows that were skipped or mended, by reason.
    """

    mended: dict[str, int] = field(default_factory=dict)
    rows: dict[str, list[str]] = field(default_factory=dict)

    def note(self, counts: dict[str, int], reason: str, place: str) -> None:
        """Count a row in `counts`, which is `skipped` or `mended`, and name it."""
        counts[reason] = counts.get(reason, 0) + 1
        named = self.rows.setdefault(reason, [])
        if len(named) < _NAMED_ROWS:
            named.append(place)


@dataclass(frozen=True)
class _Question:
    """A question as a row has it; the offsets are not checked yet.

    `context` is None where the question is open, `is_impossible` where the row does not say it.
    Where the offsets were searched for, not read, `is_searched`: None then means nowhere.
    """

    id: str
    title: str
    context: str | None
    question: str
    answers: list[tuple[str, int | None]]
    is_impossible: bool | None = None
    is_searched: bool = False


def load_question_answering(
    corpus: str | Path,
    split: str = "train",
    *,
    name: str | None = None,
    revision: str | None = None,
    data_dir: str | None = None,
    cache_dir: str | Path | None = None,
    limit: int | None = None,
) -> tuple[Dataset, QuestionsReport]:
    """Load questions with their contexts and answers.

    A question without an answer (SQuAD 2.0) has empty lists in `answers`. An open question has the
    empty `context`. An `answer_start` of -1 says that this answer is known but not located, so it
    counts when predictions are scored and is never trained on.

    What is wrong with a row is skipped or mended, counted and named in the report:

    - An offset that does not point at the answer is read as UTF-8 bytes, then as UTF-16 units; if
      that does not fit either, the nearest occurrence of the answer is taken. Without an offset it
      is the first occurrence, as a whole word if there is one.
    - Blanks around an answer are taken off.
    - An answer that is not in the context keeps the offset -1 if another one is. Otherwise the
      question is skipped.
    - Skipped are also an empty question, context or answer, an id that has come before, a row
      whose `is_impossible` contradicts its answers, and a row whose answer is not published.
    - A row without an id gets its number for one.

    TriviaQA gives each question once for each of its documents, with the id
    `<question_id>--<file>`. Its answers are names that may be anywhere in a document: of each alias
    the first occurrence is taken, as whole words, whatever the case (distant supervision, Joshi et
    al. 2017). Its configurations without documents, and Natural Questions open, are open questions.

    Args:
        corpus: One of

            - "tiny_world", the embedded corpus;
            - a Hub id; `squad`, `squad_v2`, `nq_open`, `trivia_qa` and `xquad` stand for the
              namespaced ids;
            - a folder holding `<split>.<kind>` or shards `<split>-00000-of-00002.<kind>` (kinds
              below), or what `save_to_disk` wrote;
            - a file: .json as SQuAD, XQuAD and MLQA publish it (`data`, `paragraphs`, `qas`), a
              list of objects or one a line; .jsonl; .parquet. The last two in the Hub's schema.
        split: Part of the corpus; without meaning where `corpus` names the file itself.
        name: Configuration of a Hub corpus ("rc", "rc.nocontext", "xquad.de", ...).
        revision: Revision of a Hub corpus.
        data_dir: Folder in a Hub corpus.
        cache_dir: Where the memory-mapped copy goes; by default the cache of `datasets`.
        limit: Take the first `limit` usable questions (tiny_world: that many are made).

    Returns:
        A memory-mapped `Dataset` and the counts.

    Raises:
        ValueError: If something is not as it must be, naming file, row and remedy: no such file,
            split or column, a malformed row, or nothing left to use.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit ({limit}) must be at least 1; leave it out to take every question")
    options = {
        option: value
        for option, value in (("name", name), ("revision", revision), ("data_dir", data_dir))
        if value is not None
    }
    if is_hub_id(corpus):
        hub_id, defaults = _HUB_SETS.get(str(corpus), (str(corpus), {}))
        loaded = _hub_dataset(str(corpus), hub_id, split, defaults | options, False, cache_dir)
        origin = _dataset(f"{hub_id} {split}", loaded)
    elif options:
        raise ValueError(f"{', '.join(options)}: only for a corpus on the Hub, not {corpus}")
    elif corpus == "tiny_world":
        origin = _tiny_world(split, limit)
    elif (path := Path(corpus).expanduser()).is_dir():
        origin = _folder(path, split)
    else:
        origin = _files([path])

    report = QuestionsReport(origin.name)
    examples = partial(_usable_examples, origin, limit, report)
    identity = ("question answering", _READER_VERSION, origin.identity, limit)
    folder = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / "vanilla_transformer"
    stem = folder / hashlib.sha256(repr(identity).encode()).hexdigest()
    return _memory_map(examples, stem, report, _FEATURES)


# Rows to examples


def _usable_examples(
    origin: _Origin, limit: int | None, report: QuestionsReport
) -> Iterator[dict[str, Any]]:
    """Yield the questions that can be used, counting in `report`."""
    seen: set[str] = set()
    for where, number, row in origin.records():
        place = f"{where} {number}"
        for question in _questions(row, where, number):
            report.read += 1
            reason = "id that came before" if question.id in seen else _defect(question)
            located: list[tuple[str, int]] = []
            mended: set[str] = set()
            if reason is None:
                located, mended = _located_answers(question)
                if question.context is not None and located and located[0][1] < 0:
                    reason = "answer not in the context"
            if reason is not None:
                report.note(report.skipped, reason, place)
                continue
            for rule in sorted(mended):
                report.note(report.mended, rule, place)
            seen.add(question.id)
            report.kept += 1
            yield {
                "id": question.id,
                "title": question.title,
                "context": question.context or "",
                "question": question.question,
                "answers": {
                    "text": [text for text, _ in located],
                    "answer_start": [start for _, start in located],
                },
            }
            if report.kept == limit:
                return
    if report.kept == 0:
        reasons = ", ".join(f"{count} {reason}" for reason, count in report.skipped.items())
        raise ValueError(
            f"{origin.name}: no question to use among {report.read}"
            + (f" ({reasons})" if reasons else "")
            + "; check the corpus and its split"
        )


def _defect(question: _Question) -> str | None:
    """Why a question cannot be used, if it cannot."""
    if not question.question.strip():
        return "empty question"
    if question.context is not None and not question.context.strip():
        return "empty context"
    if any(not text.strip() for text, _ in question.answers):
        return "empty answer"
    if question.is_impossible and question.answers:
        return "is_impossible, and an answer"
    # Only text that can lack the answer can make a question without one.
    if not question.answers and (question.is_impossible is False or question.context is None):
        return "answer not published"
    return None


def _located_answers(question: _Question) -> tuple[list[tuple[str, int]], set[str]]:
    """Find the answers in the context, those that are there before those that are not.

    Returns:
        Answers with offsets (-1: not in the context) and the rules that mended some of them.
    """
    if question.context is None or question.is_searched:
        return [(text, -1 if start is None else start) for text, start in question.answers], set()
    located = []
    mended = set()
    for text, start in question.answers:
        bare = text.strip()
        if bare != text:
            mended.add("blanks around the answer taken off")
            start = None if start is None else start + len(text) - len(text.lstrip())
        position, rule = _locate(question.context, bare, start)
        if rule is not None:
            mended.add(rule)
        located.append((bare, position))
    if any(position < 0 for _, position in located):
        mended.add("answer not in the context beside others that are")
    return sorted(located, key=lambda answer: answer[1] < 0), mended


def _locate(context: str, text: str, start: int | None) -> tuple[int, str | None]:
    """Where an answer begins, in characters (-1: nowhere), and the rule that mended its offset."""
    if start is not None and start >= 0:
        if context.startswith(text, start):
            return start, None
        for encoding, width, unit in (
            ("utf-8", 1, "UTF-8 bytes"),
            ("utf-16-le", 2, "UTF-16 units"),
        ):
            encoded = context.encode(encoding)
            if encoded.startswith(text.encode(encoding), width * start):
                return len(encoded[: width * start].decode(encoding)), f"offset in {unit}"
    occurrences = list(_occurrences(context, text))
    if not occurrences:
        return -1, None
    if start is None or start == -1:
        whole = [position for position in occurrences if _is_whole(context, position, len(text))]
        return (whole or occurrences)[0], "no offset: first occurrence taken"
    nearest = min(occurrences, key=lambda position: abs(position - start))
    return nearest, "wrong offset: nearest occurrence taken"


def _occurrences(context: str, text: str) -> Iterator[int]:
    """Where `text` occurs, overlapping or not."""
    position = context.find(text)
    while position >= 0:
        yield position
        position = context.find(text, position + 1)


def _is_whole(context: str, start: int, length: int) -> bool:
    """Whether a span neither begins nor ends inside a word."""
    end = start + length
    return not (
        (start > 0 and context[start - 1 : start + 1].isalnum())
        or (end < len(context) and context[end - 1 : end + 1].isalnum())
    )


# Schemas


def _questions(row: Mapping[str, Any], where: str, number: int) -> Iterator[_Question]:
    """The questions of a row: one, or in TriviaQA one for each document."""
    if "question" not in row or ("answers" not in row and "answer" not in row):
        missing = "question" if "question" not in row else "answers"
        raise ValueError(
            f"{where} {number}: no column {missing!r} among {', '.join(map(repr, row))}; a row has "
            "'question', 'answers' and, unless the question is open, 'context'"
        )
    answers = row.get("answers", row.get("answer"))
    if isinstance(answers, Mapping) and "aliases" in answers:
        yield from _trivia_questions(row, answers, where, number)
        return
    context = _text(row["context"], where, number) if "context" in row else None
    given_id = row.get("id")
    yield _Question(
        # Some sets number their questions.
        id=str(given_id)
        if isinstance(given_id, int)
        else _text(given_id, where, number) or str(number),
        title=_text(row.get("title"), where, number),
        context=context,
        question=_text(row["question"], where, number),
        answers=_answers(answers, where, number),
        is_impossible=row.get("is_impossible"),
    )


def _answers(answers: object, where: str, number: int) -> list[tuple[str, int | None]]:
    """Answers of the Hub's schema, of SQuAD's files or of an open question, with their offsets."""
    due = '{"text": ["..."], "answer_start": [0]}'
    if isinstance(answers, Mapping) and "text" in answers:
        texts = answers["text"]
        starts = answers.get("answer_start", [None] * len(texts))
    elif isinstance(answers, list) and all(isinstance(one, Mapping) for one in answers):
        texts = [one.get("text") for one in answers]
        starts = [one.get("answer_start") for one in answers]
    elif isinstance(answers, list):
        texts, starts = answers, [None] * len(answers)
    else:
        raise ValueError(f"{where} {number}: answers ({answers!r}) must be {due}")
    if not (isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts)):
        raise ValueError(
            f"{where} {number}: answers ({answers!r}) must have as many texts as offsets, {due}"
        )
    for start in starts:
        # True is an int to Python.
        if start is not None and (isinstance(start, bool) or not isinstance(start, int)):
            raise ValueError(
                f"{where} {number}: answer_start ({start!r}) must be a number of characters"
            )
    return [(_text(text, where, number), start) for text, start in zip(texts, starts, strict=True)]


def _trivia_questions(
    row: Mapping[str, Any], answer: Mapping[str, Any], where: str, number: int
) -> Iterator[_Question]:
    """A row of TriviaQA: its question with each document, or alone if it has none."""
    question_id = _text(row.get("question_id"), where, number) or str(number)
    question = _text(row["question"], where, number)
    aliases = [_text(alias, where, number) for alias in (answer["value"], *answer["aliases"])]
    # The test split has the value "<unk>" and no alias.
    names = list(dict.fromkeys(name for name in aliases if name.strip() and name != "<unk>"))
    documents = []
    for column, text in (("entity_pages", "wiki_context"), ("search_results", "search_context")):
        pages = row.get(column) or {}
        documents += list(
            zip(
                pages.get("filename", ()),
                pages.get("title", ()),
                pages.get(text, ()),
                strict=True,
            )
        )
    if not documents:
        yield _Question(question_id, "", None, question, [(name, None) for name in names])
    for filename, title, context in documents:
        yield _Question(
            f"{question_id}--{filename}",
            _text(title, where, number),
            _text(context, where, number),
            question,
            _aliases_in(context or "", names),
            is_impossible=False,
            is_searched=True,
        )


def _aliases_in(context: str, names: Sequence[str]) -> list[tuple[str, int | None]]:
    """The first occurrence of each name as the context spells it; the others as they are."""
    # Lower-casing must not move the characters: that of "İ" is two.
    lowered = "".join(low if len(low := letter.lower()) == 1 else letter for letter in context)
    found: list[tuple[str, int | None]] = []
    absent: list[tuple[str, int | None]] = []
    for name in names:
        wanted = name.strip().lower()
        for start in _occurrences(lowered, wanted):
            if _is_whole(lowered, start, len(wanted)):
                found.append((context[start : start + len(wanted)], start))
                break
        else:
            absent.append((name, None))
    return sorted(set(found), key=lambda answer: answer[1] or 0) + absent


# Where rows come from


def _tiny_world(split: str, limit: int | None) -> _Origin:
    """Rows of the embedded corpus."""
    if split not in _TINY_WORLD_SIZES:
        raise ValueError(_no_such_split("tiny_world", split, _TINY_WORLD_SIZES))
    count = limit or _TINY_WORLD_SIZES[split]
    identity = ("tiny_world", split, count, _file_identity(Path(tiny_world.__file__)))
    return _Origin(f"tiny_world {split}", partial(_tiny_world_rows, split, count), identity)


def _tiny_world_rows(split: str, count: int) -> Iterator[Record]:
    """Generated questions."""
    rows = tiny_world.generate_question_answering(cast(tiny_world.Split, split), count)
    for number, row in enumerate(rows, start=1):
        yield f"tiny_world {split}, question", number, row


def _folder(folder: Path, split: str) -> _Origin:
    """Rows of one split of a folder."""
    if (saved := _saved_to_disk(folder, split)) is not None:
        return saved
    found = _files_by_split((folder, folder / "data"), _READERS)
    if split not in found:
        raise ValueError(_no_such_split(folder, split, found))
    return _files(_of_one_kind(folder, split, found[split]))


def _files(paths: list[Path]) -> _Origin:
    """Rows of one file, or of the shards of one split in order."""
    for path in paths:
        if not path.is_file():
            raise ValueError(f"{path}: no such file or folder; check the path")
        if path.suffix not in _READERS:
            raise ValueError(
                f"{path}: the kind of file is told by its name, one of {', '.join(_READERS)}"
            )
    name = str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
    return _Origin(name, partial(_file_rows, paths), tuple(map(_file_identity, paths)))


def _file_rows(paths: list[Path]) -> Iterator[Record]:
    """Rows of one file after the other."""
    for path in paths:
        yield from _READERS[path.suffix](path)


def _squad_rows(path: Path) -> Iterator[Record]:
    """Questions of a file as SQuAD publishes it, or rows of any other JSON file."""
    text = "".join(_lines(path))
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        # Objects one a line are no JSON together; the first alone tells them from a broken file.
        first, _, _ = text.lstrip().partition("\n")
        try:
            json.loads(first)
        except json.JSONDecodeError:
            raise ValueError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from error
        content = None
    if not (isinstance(content, dict) and "data" in content):
        yield from _json_rows(path)
        return
    for article_number, article in enumerate(content["data"]):
        for paragraph_number, paragraph in enumerate(
            _part(article, "paragraphs", f"{path}, article {article_number}")
        ):
            where = f"{path}, article {article_number}, paragraph {paragraph_number}"
            for number, question in enumerate(_part(paragraph, "qas", where)):
                if not isinstance(question, dict):
                    raise ValueError(f"{where}, question {number}: must be an object")
                row = {"title": article.get("title"), "context": paragraph.get("context")}
                # Its number says nothing outside its paragraph.
                made_id = f"{article_number}-{paragraph_number}-{number}"
                yield f"{where}, question", number, row | {"id": made_id} | question


def _part(whole: object, key: str, where: str) -> list[Any]:
    """A list inside an object of SQuAD's format."""
    part = whole.get(key) if isinstance(whole, dict) else None
    if not isinstance(part, list):
        raise ValueError(
            f'{where}: no list {key!r}; SQuAD\'s format is {{"data": [{{"title": "...", '
            '"paragraphs": [{"context": "...", "qas": [...]}]}]}'
        )
    return part


_READERS: dict[str, Callable[[Path], Iterator[Record]]] = {
    ".json": _squad_rows,
    ".jsonl": _json_rows,
    ".parquet": _parquet_rows,
}
