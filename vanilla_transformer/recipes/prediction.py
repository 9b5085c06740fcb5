"""Trained models on data: how a model is used, what it is used on, and one example as a data set.

The kind of a model decides what it can do: one with a head for spans answers questions, a
classifier infers, and one that writes text translates, or writes answers and labels. The recipe of
its run decides how, and its `predict` does it:

    recipe, _ = recipe_of("runs/squad")
    model, tokenizer = load_model("runs/squad", kind=recipe_kind(recipe))
    questions, report = read_data(recipe.task, "rajpurkar/squad", "validation")
    answers = recipe.predict(model, tokenizer, questions, Accelerator())
    print(recipe.describe("SQuAD", answers.score()))
    answers.write(Path("predictions.json"))
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from datasets import ClassLabel, Dataset, Features, List, Value
from transformers import GenerationConfig

from ..data.corpora import CorpusReport, load_parallel
from ..data.inference_corpora import LABELS, InferenceReport, load_inference
from ..data.question_answering_corpora import load_question_answering
from ..evaluation.natural_language_inference import HypothesisOnly
from ..generation import PAPER_DECODING, DecodingSettings
from .inference import InferenceRecipe
from .models import Kind, class_kind, locate_model, model_kind
from .question_answering import QuestionAnsweringRecipe
from .recipe import read_recipe
from .translation import TranslationRecipe

PredictingRecipe = TranslationRecipe | QuestionAnsweringRecipe | InferenceRecipe
Task = Literal["translation", "question_answering", "inference"]

# Where each task is usually scored: the test set of SQuAD is not published.
USUAL_SPLITS: dict[Task, str] = {
    "translation": "test",
    "question_answering": "validation",
    "inference": "test",
}


# --------------------------------------------------------------------------------- how it is used


def recipe_of(
    path_or_id: str | Path, task: Task | None = None
) -> tuple[PredictingRecipe, Path | None]:
    """How a model is used: by the recipe of its run, or else by the library's defaults.

    Without a run a translator searches as its own generation config says, if it does.

    Args:
        path_or_id: As `load_model` takes it; of the model only its configuration is read.
        task: What is wanted; None takes what the model was trained for. What that was for one
            that writes text only its run can tell; without a run it translates.

    Returns:
        The recipe, and the file it is from; None where the model is in no run, or in one of
        another task than is wanted.

    Raises:
        ValueError: There is no model, the task is not what it was trained for, or the run's
            recipe cannot be read.
    """
    kind = model_kind(path_or_id)
    if kind != "text" and task not in (None, kind):
        assert task is not None
        raise ValueError(
            f"{path_or_id} is a model for {kind.replace('_', ' ')}, which cannot be used for "
            f"{task.replace('_', ' ')}; a task is to be chosen only for a model that writes text"
        )
    file = _recipe_file(path_or_id)
    if file is not None:
        try:
            recipe = read_recipe(file)
        except ValueError as error:
            raise ValueError(
                f"{error}; to use the model by the library's defaults, copy its directory out of "
                "the run"
            ) from error
        # A run has models of one kind, but any directory may hold a copy of another.
        if (
            isinstance(recipe, PredictingRecipe)
            and recipe_kind(recipe) == kind
            and task in (None, recipe.task)
        ):
            return recipe, file
    recipe = default_recipe(task or ("translation" if kind == "text" else kind), kind)
    if isinstance(recipe, TranslationRecipe):
        recipe = dataclasses.replace(recipe, decoding=model_decoding(path_or_id))
    return recipe, None


def model_decoding(path_or_id: str | Path) -> DecodingSettings:
    """How the model is meant to search, by the generation config beside it; else the paper's.

    Raises:
        ValueError: There is no model, or its generation config is damaged.
    """
    name = locate_model(path_or_id)
    path = Path(name) / "generation_config.json"
    if Path(name).is_dir() and not path.is_file():
        # An older model comes without one.
        return PAPER_DECODING
    try:
        return DecodingSettings.of_model(GenerationConfig.from_pretrained(name))
    # It compares what it reads before it looks at what that is.
    except Exception as error:
        if isinstance(error, OSError) and not path.is_file():
            return PAPER_DECODING
        raise ValueError(f"{path} cannot be used: {error}; save the model again") from error


def _recipe_file(path_or_id: str | Path) -> Path | None:
    """The recipe of the run that a path is, or is in: `model`, `best` or one of `checkpoints`."""
    path = Path(path_or_id).expanduser()
    if not path.is_dir():
        return None
    folders = (path, *path.resolve().parents[:2])
    return next((one / "recipe.json" for one in folders if (one / "recipe.json").is_file()), None)


def default_recipe(task: Task, kind: Kind = "text") -> PredictingRecipe:
    """A recipe without a name that uses a model of that kind by the library's defaults."""
    if task == "translation":
        return TranslationRecipe(name="", description="", source_lang="en", target_lang="de")
    if task == "question_answering":
        return QuestionAnsweringRecipe(
            name="", description="", route="written" if kind == "text" else "span"
        )
    return InferenceRecipe(name="", description="", route="written" if kind == "text" else "class")


def recipe_kind(recipe: PredictingRecipe) -> Kind:
    """What a model of that recipe does, as `load_model` is to be told."""
    kind = class_kind(recipe.model_class.__name__)
    assert kind is not None
    return kind


# ---------------------------------------------------------------------------------------- data


def read_data(
    task: Task,
    corpus: str | Path | Sequence[Path],
    split: str | None = None,
    *,
    languages: tuple[str, str] = ("en", "de"),
    limit: int | None = None,
    name: str | None = None,
    label_names: Sequence[str] | None = None,
    keep_unlabelled: bool = False,
) -> tuple[Dataset, CorpusReport | InferenceReport]:
    """Reads data of a task by its own loader.

    Args:
        task: What the data are for.
        corpus: As the loader takes it; two text files for translation only.
        split: Part of the corpus; by default the one that the task is usually scored on.
        languages: Of source and target, for translation.
        limit: Examples to take; all.
        name: Configuration of a Hub data set.
        label_names: What bare numbers mean as labels, for inference.
        keep_unlabelled: Keep what has no label and no known answer, to predict it.

    Raises:
        ValueError: As the loader.
    """
    split = split or USUAL_SPLITS[task]
    if task == "translation":
        pairs, report = load_parallel(corpus, *languages, split, name=name, limit=limit)
        assert isinstance(pairs, Dataset)
        return pairs, report
    if not isinstance(corpus, str | Path):
        raise ValueError(
            f"{task.replace('_', ' ')} takes one corpus, not {len(corpus)} files: "
            f"{', '.join(map(str, corpus))}"
        )
    if task == "question_answering":
        return load_question_answering(
            corpus, split, name=name, limit=limit, keep_unanswered=keep_unlabelled
        )
    return load_inference(
        corpus,
        split,
        name=name,
        limit=limit,
        label_names=label_names,
        keep_unlabelled=keep_unlabelled,
    )


def read_hypotheses(corpus_and_split: str) -> HypothesisOnly:
    """The hypothesis-only baseline, fitted to training data.

    Args:
        corpus_and_split: CORPUS or CORPUS:SPLIT; without a split it is `train`.

    Raises:
        ValueError: As `load_inference`.
    """
    corpus, colon, split = corpus_and_split.rpartition(":")
    if not colon or not corpus or Path(corpus_and_split).exists():
        corpus, split = corpus_and_split, "train"
    return HypothesisOnly(load_inference(corpus, split)[0])


def as_question(question: str, context: str = "") -> Dataset:
    """One question as a data set.

    Raises:
        ValueError: It is blank.
    """
    if not question.strip():
        raise ValueError(f"the question ({question!r}) is blank; ask something")
    text = Value("string")
    answers = {"text": List(text), "answer_start": List(Value("int32"))}
    row = {"id": "1", "title": "", "context": context, "question": question}
    return Dataset.from_list(
        [{**row, "answers": {"text": [], "answer_start": []}}],
        features=Features({**dict.fromkeys(row, text), "answers": answers}),
    )


def as_pair(premise: str, hypothesis: str) -> Dataset:
    """One pair without a label as a data set.

    Raises:
        ValueError: A side is blank.
    """
    for side, sentence in (("premise", premise), ("hypothesis", hypothesis)):
        if not sentence.strip():
            raise ValueError(f"the {side} ({sentence!r}) is blank; write a sentence")
    text = Value("string")
    return Dataset.from_list(
        [{"id": "1", "premise": premise, "hypothesis": hypothesis, "label": -1}],
        features=Features(
            {"id": text, "premise": text, "hypothesis": text, "label": ClassLabel(names=[*LABELS])}
        ),
    )
