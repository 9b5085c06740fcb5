"""One call, one table: models on the usual test sets of translation, questions and inference."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from datasets import Dataset

from ..evaluation.significance import confidence_intervals
from ..training.loop import build_accelerator
from .models import load_model
from .prediction import USUAL_SPLITS, Task, read_data, recipe_kind, recipe_of
from .translation import TranslationRecipe, Translations


@dataclasses.dataclass(frozen=True)
class TestSet:
    """Where examples of a task are.

    Attributes:
        name: In the table.
        task: What they are for.
        corpus: A path or a Hub id, as the reader of the task takes it.
        split: By default the one that the task is usually scored on.
        configuration: Of a Hub data set.
        languages: Of source and target, for translation; by default the model's.
    """

    # Not a class of tests, whatever pytest makes of the name.
    __test__ = False

    name: str
    task: Task
    corpus: str | Path
    split: str | None = None
    configuration: str | None = None
    languages: tuple[str, str] | None = None


def parse_test_sets(texts: Sequence[str]) -> list[TestSet]:
    """Test sets as a command line has them: TASK=CORPUS or TASK=CORPUS:SPLIT.

    Each is called by the last part of its corpus's name and the split, if there is one; and by the
    task, where a corpus serves several.

    Raises:
        ValueError: No task, or no corpus.
    """
    found = []
    for text in texts:
        task, corpus = split_task(text)
        if task is None or not corpus:
            raise ValueError(
                f"test set {text!r} must be TASK=CORPUS or TASK=CORPUS:SPLIT, where TASK is one of "
                f"{', '.join(one.replace('_', '-') for one in USUAL_SPLITS)}"
            )
        split = ""
        if ":" in corpus and not Path(corpus).exists():
            corpus, _, split = corpus.rpartition(":")
        found.append(TestSet(f"{Path(corpus).stem} {split}".strip(), task, corpus, split or None))
    tasks: dict[str, set[Task]] = {}
    for one in found:
        tasks.setdefault(one.name, set()).add(one.task)
    return [
        one
        if len(tasks[one.name]) == 1
        else dataclasses.replace(one, name=f"{one.name} ({one.task.replace('_', ' ')})")
        for one in found
    ]


def split_task(text: str) -> tuple[Task | None, str]:
    """TASK=REST into the two; the task is None where `text` begins with none."""
    before, equals, rest = text.partition("=")
    for task in USUAL_SPLITS:
        if equals and before.replace("-", "_") == task:
            return task, rest
    return None, text


def models_by_task(models: Sequence[str]) -> dict[Task, str]:
    """Models by what they are for, as `evaluate_suite` takes them.

    Args:
        models: As `load_model` takes them; TASK=MODEL for what writes text and is in no run.

    Raises:
        ValueError: Two of one task, or as `recipe_of`.
    """
    found: dict[Task, str] = {}
    for text in models:
        wanted, model = split_task(text)
        task = wanted or cast(Task, recipe_of(model)[0].task)
        if task in found:
            raise ValueError(
                f"{found[task]} and {model} are both for {task.replace('_', ' ')}; give one model "
                "of a task, and compare several by `score`"
            )
        found[task] = model
    return found


# On the Hub; with local copies, `dataclasses.replace(one, corpus=path)`.
STANDARD_TEST_SETS = (
    TestSet("WMT14 en-de", "translation", "wmt/wmt14", "test", "de-en", ("en", "de")),
    TestSet("SQuAD 1.1", "question_answering", "rajpurkar/squad", "validation"),
    TestSet("SNLI", "inference", "stanfordnlp/snli", "test"),
)


def evaluate_suite(
    models: Mapping[Task, str | Path],
    test_sets: Sequence[TestSet] = STANDARD_TEST_SETS,
    *,
    limit: int | None = None,
    device: str | None = None,
    num_resamples: int = 1000,
    breakdown: Mapping[str, Any] | None = None,
) -> dict[str, dict[str, Any]]:
    """Score a model of each task on all test sets of that task.

    Each model is used by its run's recipe, or by the library's defaults.

    Args:
        models: A model directory, run directory or Hub id for each task, the same one for several
            if it writes text. Test sets of other tasks are left out.
        test_sets: What to score on.
        limit: Examples of each set; all.
        device: By default a GPU where there is one.
        num_resamples: Of the bootstrap intervals of translation scores.
        breakdown: Options of `domain_report`, such as `training_text`, to report on each set of
            translations as a domain.

    Returns:
        {test set: {"task", "model", "examples", "figures": {name: {"score", "interval"}}, "scores":
        all there is, as the recipe's own results have it, "domain": with a breakdown, what
        `domain_report` gives for it}}; 95 % intervals, in percent.

    Raises:
        ValueError: No test set for any of the models, two of one name, or a model or data that
            cannot be read.
    """
    chosen = [one for one in test_sets if one.task in models]
    if not chosen or len({one.name for one in chosen}) < len(chosen):
        raise ValueError(
            f"there must be one or more test sets for the models' tasks ({', '.join(models)}), "
            f"each of another name, not {', '.join(one.name for one in chosen) or 'none'}"
        )
    results: dict[str, dict[str, Any]] = {}
    for test_set in chosen:
        model = models[test_set.task]
        found, examples = _predict(model, test_set, limit, device)
        scores = found.score()
        results[test_set.name] = {
            "task": test_set.task,
            "model": str(model),
            "examples": len(examples),
            "figures": _figures(found, scores, num_resamples),
            "scores": scores,
        }
        if breakdown is not None and isinstance(found, Translations):
            labels = [test_set.name] * len(examples)
            report = found.by_domain(labels, num_resamples=num_resamples, **breakdown)
            results[test_set.name]["domain"] = report[test_set.name]
    return results


def _predict(
    path_or_id: str | Path, test_set: TestSet, limit: int | None, device: str | None
) -> tuple[Any, Dataset]:
    """What a model predicts for a test set, and the examples of it."""
    recipe: Any
    recipe, file = recipe_of(path_or_id, test_set.task)
    languages: dict[str, Any] = {}
    if isinstance(recipe, TranslationRecipe):
        own = (recipe.source_lang, recipe.target_lang)
        if file is not None and test_set.languages not in (None, own):
            raise ValueError(
                f"{path_or_id} translates {' to '.join(own)}, and {test_set.name} is of other "
                "languages; give a test set of these"
            )
        languages = {"languages": test_set.languages or own}
    examples, _ = read_data(
        test_set.task,
        test_set.corpus,
        test_set.split,
        limit=limit,
        name=test_set.configuration,
        **languages,
    )
    model, tokenizer = load_model(path_or_id, device, kind=recipe_kind(recipe))
    return recipe.predict(model, tokenizer, examples, build_accelerator(recipe.training)), examples


def _figures(found: Any, scores: Mapping[str, Any], num_resamples: int) -> dict[str, Any]:
    """The figures of the table, each with its interval."""
    if isinstance(found, Translations):
        intervals = confidence_intervals(
            found.texts,
            list(found.pairs["target"]),
            metrics={**found.sacrebleu_options(), "ter": {}},
            num_resamples=num_resamples,
        )
        return {
            label: {"score": scores[name]["score"], "interval": intervals[name]["interval"]}
            for name, label in (("bleu", "BLEU"), ("chrf", "chrF"), ("ter", "TER"))
        }
    named = {"exact_match": "EM", "f1": "F1", "accuracy": "accuracy", "macro_f1": "macro-F1"}
    return {
        label: {"score": scores[name], "interval": scores[f"{name}_interval"]}
        for name, label in named.items()
        if name in scores
    }


def format_suite(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Lay out what `evaluate_suite` found as one table, with the signatures below."""
    width = max(8, *map(len, results))
    lines = [f"{'test set':<{width}}{'examples':>10}  {'figure':<9}{'score':>8}{'95 %':>18}"]
    notes = []
    for name, one in results.items():
        head = f"{name:<{width}}{one['examples']:>10}"
        for figure, row in one["figures"].items():
            low, high = row["interval"]
            shown = f"[{low:.2f}, {high:.2f}]"
            lines.append(f"{head}  {figure:<9}{row['score']:>8.2f}{shown:>18}")
            head = " " * len(head)
        if one["task"] == "translation":
            notes.append(f"{name}: {one['scores']['bleu']['signature']}")
    return "\n".join([*lines, *notes]) + "\n"
