"""Questions and their answers from the Hub, local files or the embedded corpus, in one schema.

Every set comes out as SQuAD has it on the Hub: `id`, `title`, `context`, `question` and `answers`,
whose `answer_start` counts characters (code points) of the context. An offset that does not point
at its answer would train a model on the wrong words in silence: here each one is checked, and is
mended by a rule that is counted, or its question is left out.
"""

import hashlib
import json
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value

from . import readers, tiny_world
from .readers import CorpusReport, Origin, Reader, Record, is_hub_id

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

_TINY_WORLD_SIZES = {"train": 20_000, "validation": 1_000, "test": 1_000}

_NOT_PUBLISHED = "answer not published"

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
    keep_unanswered: bool = False,
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
        keep_unanswered: Keep questions whose answers are not published, and take rows that have no
            `answers` at all, to predict them: they look like questions without an answer.
        cache_dir: Where the memory-mapped copy goes; by default the cache of `datasets`.
        limit: Take the first `limit` usable questions (tiny_world: that many are made).

    Returns:
        A memory-mapped `Dataset` and the counts.

    Raises:
        ValueError: If something is not as it must be, naming file, row and remedy: no such file,
            split or column, a malformed row, or nothing left to use.
    """
    options = readers.check_options(
        corpus,
        limit,
        {"name": name, "revision": revision, "data_dir": data_dir},
        unit="question",
    )
    if is_hub_id(corpus):
        hub_id, defaults = _HUB_SETS.get(str(corpus), (str(corpus), {}))
        loaded = readers.load_from_hub(
            str(corpus), hub_id, split, defaults | options, False, cache_dir
        )
        origin = readers.from_dataset(f"{hub_id} {split}", loaded)
    elif corpus == "tiny_world":
        generate = tiny_world.generate_question_answering
        origin = readers.find_tiny_world(split, limit, _TINY_WORLD_SIZES, "question", generate)
    elif not (path := Path(corpus).expanduser()).is_dir():
        origin = readers.from_files([path], _READERS)
    elif (saved := readers.load_saved(path, split)) is not None:
        origin = readers.from_dataset(*saved)
    else:
        origin = readers.from_files(readers.find_split_files(path, split, _READERS), _READERS)

    report = QuestionsReport(origin.name, revision=origin.revision)
    examples = partial(_usable_examples, origin, limit, keep_unanswered, report)
    identity = ("question answering", _READER_VERSION, origin.identity, limit, keep_unanswered)
    return readers.memory_map(examples, identity, cache_dir, report, _FEATURES)


# Rows to examples


def _usable_examples(
    origin: Origin, limit: int | None, keep_unanswered: bool, report: QuestionsReport
) -> Iterator[dict[str, Any]]:
    """Yield the questions that can be used, counting in `report`."""
    seen: set[str] = set()
    for where, number, row in origin.records():
        place = f"{where} {number}"
        if keep_unanswered and row.get("answers", row.get("answer")) is None:
            row = {**row, "answers": []}
        for question in _questions(row, where, number):
            report.read += 1
            reason = "id that came before" if question.id in seen else _defect(question)
            if reason == _NOT_PUBLISHED and keep_unanswered:
                reason = None
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
        return _NOT_PUBLISHED
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
    context = readers.check_text(row["context"], where, number) if "context" in row else None
    given_id = row.get("id")
    yield _Question(
        # Some sets number their questions.
        id=str(given_id)
        if isinstance(given_id, int)
        else readers.check_text(given_id, where, number) or str(number),
        title=readers.check_text(row.get("title"), where, number),
        context=context,
        question=readers.check_text(row["question"], where, number),
        answers=_answers(answers, where, number),
        is_impossible=row.get("is_impossible"),
    )


def _answers(answers: object, where: str, number: int) -> list[tuple[str, int | None]]:
    """Answers of the Hub's schema, of SQuAD's files or of an open question, with their offsets."""
    due = '{"text": ["..."], "answer_start": [0]}'
    if isinstance(answers, Mapping) and "text" in answers:
        texts = answers["text"]
        starts = answers.get("answer_start", [None] * len(texts) if isinstance(texts, list) else 0)
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
    return [
        (readers.check_text(text, where, number), start)
        for text, start in zip(texts, starts, strict=True)
    ]


def _trivia_questions(
    row: Mapping[str, Any], answer: Mapping[str, Any], where: str, number: int
) -> Iterator[_Question]:
    """A row of TriviaQA: its question with each document, or alone if it has none."""
    question_id = readers.check_text(row.get("question_id"), where, number) or str(number)
    question = readers.check_text(row["question"], where, number)
    aliases = [
        readers.check_text(alias, where, number) for alias in (answer["value"], *answer["aliases"])
    ]
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
            readers.check_text(title, where, number),
            readers.check_text(context, where, number),
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


def _squad_rows(path: Path) -> Iterator[Record]:
    """Questions of a file as SQuAD publishes it, or rows of any other JSON file."""
    text = "".join(readers.read_lines(path))
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        # Objects one a line are no JSON together; the first alone tells them from a broken file.
        first, _, _ = text.lstrip().partition("\n")
        try:
            json.loads(first)
        except (ValueError, RecursionError):
            readers.parse_json(text, path)
        content = None
    if not (isinstance(content, dict) and "data" in content):
        yield from readers.read_json(path)
        return
    for article_number, article in enumerate(_part(content, "data", str(path))):
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


_READERS: dict[str, Reader] = {
    ".json": _squad_rows,
    ".jsonl": readers.read_json,
    ".parquet": readers.read_parquet,
}


# Questions made out of contexts


@dataclass(frozen=True)
class ClozeRates:
    """Everything by which chance has a say in `cloze_questions`.

    Attributes:
        kept: Least and greatest share of the sentence's other words that a question keeps.
        in_place: How often a question word stands where the answer was.
        in_front: How often it comes first; in the remaining cases there is none.
        swapped: How often what comes after the answer is put before what comes before it.
        names: How much likelier a capitalised word or a number is the answer than another word.
        longer: How often an answer of other words goes on by a word, up to four.
        longest: Words of a question; those nearest to the answer stay.
        given: How often the question holds the answer in its place. A model that points at the
            words of its question has learned to find equal words, from where it is a small step to
            what stands beside them; without the first step it does not get to the second.
    """

    kept: tuple[float, float] = (0.5, 0.9)
    in_place: float = 0.3
    in_front: float = 0.5
    swapped: float = 0.15
    names: float = 4.0
    longer: float = 0.4
    longest: int = 16
    given: float = 0.5


CLOZE_RATES = ClozeRates()

_ANSWER_WORDS = 4
# Two of them are left to ask with, whatever the answer.
_SENTENCE_WORDS = _ANSWER_WORDS + 2

# A sentence ends with ".", "!" or "?", and quotes or brackets that close, before a capital letter
# or a number, or with its line. "Dr. No" becomes two, which does no harm: one is too short.
_SENTENCE_END = re.compile(r"""[.!?]["'”’)\]]*\s+(?=["'“‘(\[]*[A-ZÀ-ÖØ-Þ0-9])|\n+""")
# "U.S", "1,000", "$5.50", "rock'n'roll", "20-year-old" and "50%" are one word each.
_WORD = re.compile(r"[$€£]?\w+(?:[-'’.,/]\w+)*%?")

# An answer neither is one of these nor begins or ends with one.
_FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        """
    a an the this that these those some any each every no such other another more most many much
    few all both several own i you he she it we they him her us them me my your his its our their
    who whom whose which what when where why how there here of in on at by for to from with without
    as into onto over under between among through during before after since until about against
    above below up down out off and or but nor so yet if because while although though however
    than then also not only very too even just still is are was were be been being am has have had
    having do does did done can could may might will would shall should must
    """,
    )
)
_QUESTION_WORDS = {
    "year": ("when", "what year", "in what year"),
    "number": ("how many", "how much", "what"),
    "name": ("who", "what", "which", "where"),
    "other": ("what", "which", "how", "why"),
}


def cloze_questions(
    contexts: Iterable[str], count: int, *, seed: int = 1, rates: ClozeRates = CLOZE_RATES
) -> Dataset:
    """Make questions out of contexts alone: a span is the answer, its sentence's rest the question.

    What an extractive model has to learn before all else is to match the words of the question with
    the context's. One that starts from random weights does not learn it from SQuAD's 87,599
    questions alone; of these there are as many as one likes. After Lewis et al. 2019,
    "Unsupervised Question Answering by Cloze Translation", and Ram et al. 2021, "Few-Shot Question
    Answering by Pretraining Span Selection".

    The contexts are gone through in random order again and again. One sentence of each is chosen,
    of six words or more, and in it up to four words that look like an answer: names and numbers as
    long as they go on, or other words without a comma between them. Each word that is left comes
    into the question with a probability drawn for this question, mostly with a question word that
    suits the answer, or with the answer itself. A context without such a sentence is passed over.
    The rules are for English; other languages that part their words and write capital letters will
    do.

    Args:
        contexts: Texts, such as the different contexts of a training set.
        count: How many questions.
        seed: Another one gives other questions; the same gives the same.
        rates: What is drawn how often.

    Returns:
        A memory-mapped set in the schema of `load_question_answering`.

    Raises:
        ValueError: `count` is below 1, or no context has a sentence to ask about.
    """
    if count < 1:
        raise ValueError(f"count ({count}) of cloze questions must be at least 1")
    texts = list(contexts)
    examples = partial(_cloze_examples, texts, count, seed, rates)
    content = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
    # Other code makes other questions.
    code = readers.file_identity(Path(__file__))
    identity = ("cloze questions", code, content, count, seed, rates)
    report = CorpusReport("cloze questions", len(texts), count)
    return readers.memory_map(examples, identity, None, report, _FEATURES)[0]


def _cloze_examples(
    texts: Sequence[str], count: int, seed: int, rates: ClozeRates
) -> Iterator[dict[str, Any]]:
    """Yield the questions."""
    usable = [(text, found) for text in texts if (found := _cloze_sentences(text))]
    if not usable:
        raise ValueError(
            f"none of the {len(texts)} contexts has a sentence to make a question of: "
            f"{_SENTENCE_WORDS} words, of which one may be an answer; give other contexts"
        )
    draw = random.Random(seed)
    for number in range(count):
        if number % len(usable) == 0:
            draw.shuffle(usable)
        context, sentences = usable[number % len(usable)]
        words = list(_WORD.finditer(context, *draw.choice(sentences)))
        first, last = _cloze_span(context, words, rates, draw)
        start = words[first].start()
        answer = context[start : words[last - 1].end()]
        yield {
            "id": f"cloze-{seed}-{number}",
            "title": "",
            "context": context,
            "question": _cloze_question([word[0] for word in words], first, last, rates, draw),
            "answers": {"text": [answer], "answer_start": [start]},
        }


def _cloze_sentences(context: str) -> list[tuple[int, int]]:
    """Where the sentences that can be asked about begin and end."""
    ends = [found.end() for found in _SENTENCE_END.finditer(context)]
    usable = []
    for sentence in zip([0, *ends], [*ends, len(context)], strict=True):
        words = _WORD.findall(context, *sentence)
        if len(words) >= _SENTENCE_WORDS and not _FUNCTION_WORDS.issuperset(map(str.lower, words)):
            usable.append(sentence)
    return usable


def _cloze_span(
    context: str, words: Sequence[re.Match[str]], rates: ClozeRates, draw: random.Random
) -> tuple[int, int]:
    """Choose the answer: its first word, and the one after its last."""
    is_function = [word[0].lower() in _FUNCTION_WORDS for word in words]
    is_name = [
        not function and (word[0][0].isupper() or not word[0][0].isalpha())
        for word, function in zip(words, is_function, strict=True)
    ]
    # A word that opens the sentence has its capital letter from there.
    weights = [
        0.0 if function else rates.names if name and place else 1.0
        for place, (function, name) in enumerate(zip(is_function, is_name, strict=True))
    ]
    first = draw.choices(range(len(words)), weights)[0]
    last = first + 1

    def follows(place: int) -> bool:
        between = context[words[place - 1].end() : words[place].start()]
        return between.isspace() and last - first < _ANSWER_WORDS

    while last < len(words) and follows(last):
        if not (is_name[last] if is_name[first] else draw.random() < rates.longer):
            break
        last += 1
    while is_function[last - 1]:
        last -= 1
    while is_name[first] and first > 0 and is_name[first - 1] and follows(first):
        first -= 1
    return first, last


def _cloze_question(
    words: Sequence[str], first: int, last: int, rates: ClozeRates, draw: random.Random
) -> str:
    """Ask for the words from `first` to before `last` with some of the others."""
    others = [place for place in range(len(words)) if not first <= place < last]
    share = draw.uniform(*rates.kept)
    kept = [place for place in others if draw.random() < share] or others
    kept.sort(key=lambda place: max(first - place, place - last + 1))
    kept = sorted(kept[: rates.longest])
    before = [words[place] for place in kept if place < first]
    after = [words[place] for place in kept if place >= last]
    if draw.random() < rates.swapped:
        before, after = after, before
    asked = draw.choice(_QUESTION_WORDS[_kind_of_answer(words[first])])
    chance = draw.random()
    if draw.random() < rates.given:
        question = [*before, *words[first:last], *after]
    elif chance < rates.in_place:
        question = [*before, asked, *after]
    elif chance < rates.in_place + rates.in_front:
        question = [asked, *before, *after]
    else:
        question = [*before, *after]
    text = " ".join(question)
    return f"{text[0].upper()}{text[1:]}?"


def _kind_of_answer(word: str) -> str:
    """What an answer that begins with this word seems to be."""
    if re.fullmatch(r"1\d{3}|20\d\d", word):
        return "year"
    if not word[0].isalpha():
        return "number"
    return "name" if word[0].isupper() else "other"
