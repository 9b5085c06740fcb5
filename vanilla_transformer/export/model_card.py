"""The card of a run, from what the run wrote: nothing on it is typed, and nothing made up.

A run's recipe and results are put together with what else is known of it (`content_of`), without
the paths of the machine. All of a card comes from that and the log (`render_card`), so that it can
be rendered again from the JSON beside it. What an older file does not have is left out.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import yaml
from huggingface_hub import (
    EvalResult,
    EvalResultEntry,
    ModelCardData,
    eval_result_entries_to_yaml,
)

from ..configuration_vanilla_transformer import VanillaTransformerConfig
from ..data.readers import is_hub_id
from ..recipes import (
    InferenceRecipe,
    PretrainingRecipe,
    QuestionAnsweringRecipe,
    Recipe,
    TranslationRecipe,
    changed,
    find_recipe,
    read_recipe,
)
from ..training.inference import InferenceTask
from ..training.pretraining import MaskedLanguageModelingTask
from ..training.question_answering import QuestionAnsweringTask
from ..training.translation import TextToTextTask

CARD = "README.md"
"""What the Hub calls a card."""

# By which the Hub sorts models, and the task's name there.
_PIPELINE_TAGS = {
    TranslationRecipe.task: "translation",
    QuestionAnsweringRecipe.task: "question-answering",
    InferenceRecipe.task: "text-classification",
    PretrainingRecipe.task: "fill-mask",
}
_TASK_NAMES = {
    TranslationRecipe.task: "Translation",
    QuestionAnsweringRecipe.task: "Question answering",
    InferenceRecipe.task: "Natural language inference",
    PretrainingRecipe.task: "Masked language modelling",
}
_ITEMS = {
    QuestionAnsweringRecipe.task: QuestionAnsweringTask.item,
    InferenceRecipe.task: InferenceTask.item,
    PretrainingRecipe.task: MaskedLanguageModelingTask.item,
}
# Those of a test that go into the metadata, by their ids on the Hub.
_METRICS = {
    TranslationRecipe.task: {"bleu": "bleu", "chrf": "chrf", "ter": "ter"},
    QuestionAnsweringRecipe.task: {"exact_match": "exact_match", "f1": "f1"},
    InferenceRecipe.task: {"accuracy": "accuracy", "macro_f1": "f1"},
    PretrainingRecipe.task: {"perplexity": "perplexity", "accuracy": "accuracy"},
}
_NAMES = {"bleu": "BLEU", "chrf": "chrF", "ter": "TER", "f1": "F1", "macro_f1": "macro-F1"}

# Rated power of a GPU's board in watts; the first name that is part of the device's counts.
_BOARD_WATTS = {
    "H200": 700,
    "H100 PCIe": 350,
    "H100": 700,
    "A100": 400,
    "V100": 300,
    "L40S": 350,
    "L4": 72,
    "T4": 70,
    "RTX 4090": 450,
    "RTX 3090": 350,
}
_GPU = re.compile(r"NVIDIA|GeForce|Tesla|Quadro|Instinct|Radeon|Graphics", re.IGNORECASE)
# Of a server's processor at work, with its share of memory: 280 W for 32 to 64 cores are 4 to 9 W.
_WATTS_A_THREAD = 10

# What the command says in another way, or what does not change the run.
_NOT_SET = ("name", "corpus", "initial_model", "description", "data_source", "published")

# Directories of a run that hold a model: the run's name says more.
_MODELS_OF_A_RUN = ("model", "best", "ema")

# A path that nobody named, at its beginning: `/home/me/`, `~/data/`, `../`.
_FOLDERS = re.compile(r"(?<![\w.:/])(?:~|\.{1,2})?/(?:[^\s/,;'\"`]+/)+")


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run: its directory, its recipe and the content of its `results.json`."""

    directory: Path
    recipe: Recipe
    results: dict[str, Any]

    @classmethod
    def read(cls, directory: Path) -> Run:
        """From its directory.

        Raises:
            ValueError: There is no finished run in it.
        """
        recipe = read_recipe(directory / "recipe.json")
        results = directory / "results.json"
        if not results.exists():
            raise ValueError(f"{directory} has no results.json: finish the run with --resume")
        return cls(directory, recipe, json.loads(results.read_text("utf-8")))

    @property
    def command(self) -> str:
        """What makes such a run, with data and models by their names."""
        processes = self.results["environment"].get("processes", 1)
        launcher = ["vanilla-transformer"]
        if processes > 1:
            launcher = f"torchrun --nproc-per-node {processes} -m vanilla_transformer".split()
        return shlex.join([*launcher, "train", self.recipe.name, *arguments_of(self.recipe)])


# ------------------------------------------------------------------- what a card is made from


def content_of(
    run: Run,
    *,
    hardware: str | None = None,
    remark: str = "",
    languages: tuple[str, ...] = (),
    evaluations: dict[str, dict[str, Any]] | None = None,
    stages: list[Run] | None = None,
    exports: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """All that the card of a run is made from, as JSON without the paths of the machine.

    Args:
        run: A finished one.
        hardware: What it ran on, in words; by default the device as the run has noted it.
        remark: What a reader must know of how it ran.
        languages: Of the texts; by default those of a translation.
        evaluations: More scores of the final model, by title.
        stages: Runs that the initial model comes from, earliest first.
        exports: Records of exports of the final model, see `export.json`.
    """
    stages = stages or []
    environment = run.results["environment"]
    if hardware is None:
        processes = environment.get("processes", 1)
        hardware = f"{processes} × {environment['device']}, {environment['threads']} threads each"
    if isinstance(run.recipe, TranslationRecipe):
        languages = languages or (run.recipe.source_lang, run.recipe.target_lang)
    content: dict[str, Any] = {
        "recipe": {"task": run.recipe.task, **dataclasses.asdict(run.recipe)},
        "results": run.results,
        "command": run.command,
        "hardware": hardware,
        "remark": remark,
        "languages": languages,
        "architecture": architecture_of(run),
        "dataset": _dataset_of(run),
        "evaluations": evaluations,
        "stages": [described(stage) for stage in stages],
        "exports": exports,
    }
    places = [place for one in (run, *stages) for place in places_of(one.recipe)]
    found = without_paths({name: part for name, part in content.items() if part}, places)
    # What is a tuple here is a list once it has been read back.
    read: dict[str, Any] = json.loads(json.dumps(found))
    return read


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's `training_log.jsonl`."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def _dataset_of(run: Run) -> dict[str, str]:
    """Id and commit of the training data, if they came from the Hub."""
    data = run.results["data"]
    place = re.fullmatch(r"([\w.-]+/[\w.-]+) [\w.-]+", data["corpus"])
    if not (place and isinstance(run.recipe.corpus, str) and is_hub_id(run.recipe.corpus)):
        return {}
    revision = data.get("revision")
    return {"id": place[1]} | ({"revision": revision} if revision else {})


def described(stage: Run) -> dict[str, Any]:
    """What a card says of the run that its initial model comes from."""
    training = stage.results["training"]
    # The command says where it starts from by the name of the directory.
    directory, name = stage.directory.resolve().name, stage.recipe.name
    return {
        "name": name if directory == name else f"{name} (as {directory})",
        "command": stage.command,
        "updates": training["updates"],
        "seconds": training["seconds"],
        "scores": training["validation"],
    }


# ------------------------------------------------------------------------------- names for paths


def public_name(place: str) -> str:
    """A corpus or a model without the way to it: a Hub id as it is, of a path the last name."""
    if is_hub_id(place):
        return place
    path = Path(place)
    if path.name == "model" and path.parent.name:
        return path.parent.name
    if path.name in _MODELS_OF_A_RUN and path.parent.name:
        return f"{path.parent.name}/{path.name}"
    return path.name or path.resolve().name


def corpora_of(recipe: Recipe) -> tuple[str, ...]:
    """One corpus, or the files of two sides."""
    return (recipe.corpus,) if isinstance(recipe.corpus, str) else recipe.corpus


def places_of(recipe: Recipe) -> list[str]:
    """Where the data and the initial model lay."""
    return [place for place in (*corpora_of(recipe), recipe.initial_model) if place]


def without_paths(value: Any, places: list[str]) -> Any:
    """JSON with names in place of paths: where things lay is nobody else's business."""
    if isinstance(value, dict):
        return {name: without_paths(part, places) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(part, places) for part in value]
    if not isinstance(value, str):
        return value
    for place in sorted(places, key=len, reverse=True):
        if "/" in place:
            value = value.replace(place, public_name(place))
    return _FOLDERS.sub("", value)


# ------------------------------------------------------------------------------------ the command


def arguments_of(recipe: Recipe) -> list[str]:
    """Arguments that make the registered recipe of the same name this one.

    Raises:
        ValueError: No recipe of that name is registered, or no command makes it this one.
    """
    registered = find_recipe(recipe.name)
    arguments: list[str] = []
    if recipe.corpus != registered.corpus:
        for place in corpora_of(recipe):
            arguments += ["--data", public_name(place)]
    if recipe.initial_model != registered.initial_model:
        model = recipe.initial_model
        arguments += ["--init", public_name(model)] if model else ["--set", "initial_model=null"]
    made = dataclasses.replace(
        registered, **{name: getattr(recipe, name) for name in _NOT_SET if name != "name"}
    )
    waiting = list(differences(made, recipe))
    while waiting:
        for name, value in waiting:
            try:
                made = changed(made, name, value)
            except ValueError:
                # Perhaps it goes together with another change only, which then comes first.
                continue
            arguments += ["--set", f"{name}={in_command(value)}"]
            waiting.remove((name, value))
            break
        else:
            names = ", ".join(name for name, _ in waiting)
            raise ValueError(f"no command changes {recipe.name} to this run's {names}")
    assert made == recipe
    return arguments


def differences(before: Any, after: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """What is to be set, by dotted name, to make one dataclass or dictionary the other."""
    if dataclasses.is_dataclass(before):
        names = [field.name for field in dataclasses.fields(before)]
        pairs = [(name, getattr(before, name), getattr(after, name)) for name in names]
    else:
        pairs = [(name, before.get(name, ...), value) for name, value in after.items()]
    for name, old, new in pairs:
        if old == new:
            continue
        # A name can be set and not taken away.
        is_extended = isinstance(old, dict) and old.keys() <= new.keys()
        if dataclasses.is_dataclass(old) or is_extended:
            yield from differences(old, new, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", new


def in_command(value: Any) -> str:
    """A value as `--set` reads it: text as it is, unless that would be read as JSON."""
    if isinstance(value, str):
        try:
            json.loads(value)
        except ValueError:
            return value
    return json.dumps(value, separators=(",", ":"))


# -------------------------------------------------------------------------------- facts and rows


def facts_of(content: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What a run of one task has to say that others have not, as rows of a table."""
    recipe, results = content["recipe"], content["results"]
    task, data = _task(recipe), results["data"]
    encoding = data.get("encoding", data)
    if recipe.get("initial_model") is not None:
        new, left = (results["initialised"][key] for key in ("newly_initialised", "left_out"))
        yield (
            "starts from",
            f"{recipe['initial_model']}; newly initialised: {in_short(new)}; "
            f"left out: {in_short(left)}",
        )
    if task != TranslationRecipe.task:
        validation = recipe["validation_split"] or f"{recipe['held_out']:,} texts held out of it"
        yield "data", f"{_corpus(recipe)}: {recipe['train_split']}; validated on {validation}"
    if task == QuestionAnsweringRecipe.task and not writes_text(recipe):
        questions = "questions" if recipe["cloze_questions"] is None else "cloze questions"
        yield (
            f"training {questions}",
            f"{encoding['questions']:,} in {encoding['windows']:,} windows",
        )
        yield (
            "windows",
            f"{recipe['max_length']} tokens, {recipe['stride']} of them shared by neighbours; "
            f"questions of at most {recipe['max_question_length']}, answers of at most "
            f"{recipe['max_answer_length']} tokens",
        )
        if recipe["has_no_answer"]:
            threshold = results["fitted"]["no_answer_threshold"]
            yield "no answer", f"scores above {threshold:.3f}, fitted on the validation data"
    elif task == PretrainingRecipe.task:
        yield (
            "training texts",
            f"{encoding['texts']:,} in {encoding['blocks']:,} blocks of at most "
            f"{recipe['max_length']} tokens",
        )
        yield "masked", f"{100 * recipe['masked_share']:g} % of the tokens"
    else:
        yield "training pairs", f"{encoding['kept']:,}"
        if task != TranslationRecipe.task:
            yield "longest pair", f"{recipe['max_length']} tokens"


def energy_of(results: dict[str, Any]) -> str | None:
    """An estimate from rated power and time, with what it assumes; None for an unknown device."""
    environment, seconds = results["environment"], results["training"]["seconds"]
    device, processes = environment["device"], environment.get("processes", 1)
    watts = next((power for name, power in _BOARD_WATTS.items() if name in device), None)
    if watts is not None:
        units = f"{processes} GPU{'s' if processes > 1 else ''} × {watts} W (rated power)"
        total = processes * watts
    elif _GPU.search(device) or "threads" not in environment:
        return None
    else:
        threads = processes * environment["threads"]
        units = (
            f"{threads} thread{'s' if threads > 1 else ''} × {_WATTS_A_THREAD} W (assumed of a "
            "server's processor with its memory)"
        )
        total = threads * _WATTS_A_THREAD
    return (
        f"about {total * seconds / 3600:,.0f} Wh, estimated and not measured: {units} × "
        f"{seconds / 60:.1f} minutes"
    )


def limitations_of(content: dict[str, Any]) -> Iterator[str]:
    """What the model is not to be trusted with, as far as its run shows it."""
    recipe, results = content["recipe"], content["results"]
    yield (
        f"It has learned from {_corpus(recipe)} alone, with all that is one-sided in it, and was "
        "tested on nothing but the sets above."
    )
    if recipe.get("lowercase"):
        yield "It makes no difference between upper and lower case."
    if recipe.get("strip_punctuation"):
        yield "It does not see punctuation."
    if _task(recipe) == TranslationRecipe.task:
        yield (
            f"Training pairs had at most {recipe['max_length']} tokens a side, a sentence as a "
            "rule; longer texts are to be split."
        )
    planned, updates = recipe["training"]["updates"], results["training"]["updates"]
    if updates < planned:
        yield f"Training ended at {updates:,} of {planned:,} planned updates."
    beaten = [
        title
        for title, test in _tests(content).items()
        if test.get("accuracy", 100.0) <= test.get("majority_accuracy", -1.0)
    ]
    if beaten:
        yield f"Always giving the commonest label is as good or better on {', '.join(beaten)}."


def in_short(names: list[str], most: int = 6) -> str:
    """Names of weights, counted by their beginning where they are many."""
    if len(names) <= most:
        return ", ".join(f"`{name}`" for name in names) or "nothing"
    counts = Counter(".".join(name.split(".")[:2]) for name in names)
    return ", ".join(f"`{name}` ({count} tensors)" for name, count in counts.items())


def architecture_of(run: Run) -> dict[str, Any]:
    """What the recipe says of it, or the dimensions of a model that was not made by the recipe."""
    if run.recipe.architecture and run.recipe.initial_model is None:
        return run.recipe.architecture
    config = VanillaTransformerConfig.from_pretrained(run.directory / "model")
    names = ["d_model", "d_ff", "num_heads", "num_encoder_layers"]
    names += ["num_decoder_layers"] if config.is_encoder_decoder else []
    return {name: getattr(config, name) for name in (*names, "dropout")}


def columns_of(recipe: dict[str, Any], validation: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Scores of the validations, each with the head of its column."""
    beams = f" (beam {recipe['training']['validation_beams']})" if writes_text(recipe) else ""
    columns = {}
    for entry in validation:
        for name in entry:
            if name in ("kind", "update", "epoch", "seconds", "is_final"):
                continue
            if name == "perplexity":
                columns[name] = name
            else:
                columns[name] = f"validation {score_name(name)}{'' if name == 'loss' else beams}"
    return list(columns.items())


def score_name(name: str) -> str:
    """A score as people write it."""
    return _NAMES.get(name, name.replace("_", " "))


def writes_text(recipe: dict[str, Any]) -> bool:
    """Whether the loss is that of target tokens."""
    return _task(recipe) == TranslationRecipe.task or recipe.get("route") == "written"


def _task(recipe: dict[str, Any]) -> str:
    # The first runs were all translation, and did not say so.
    return str(recipe.get("task", TranslationRecipe.task))


def _corpus(recipe: dict[str, Any]) -> str:
    corpus = recipe["corpus"]
    return corpus if isinstance(corpus, str) else ", ".join(corpus)


def _tests(content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Scores by test set, of the run and of later evaluations."""
    return {**content["results"]["tests"], **content.get("evaluations", {})}


def question_groups(scores: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Questions with and without an answer, and by question word."""
    groups = {
        name.replace("_", " "): scores[name]
        for name in ("has_answer", "no_answer")
        if name in scores
    }
    return groups | scores.get("by_question_word", {})


def figure(value: Any, name: str = "", digits: int = 2) -> str:
    """A score, or a dash where there is none."""
    if value is None or isinstance(value, jinja2.Undefined):
        return "–"
    return f"{value:.{3 if name == 'loss' else digits}f}"


def interval(scores: dict[str, Any], name: str) -> str:
    """A score with its interval, where there is one."""
    bounds = scores.get(f"{name}_interval")
    shown = f" [{bounds[0]:.1f}, {bounds[1]:.1f}]" if bounds else ""
    return f"{scores[name]:.2f}{shown}"


# ---------------------------------------------------------------------------------- the metadata


@dataclasses.dataclass(frozen=True)
class Score:
    """One figure of one test set.

    Attributes:
        split: The test set, or the title of a later evaluation.
        name: Of the score, in the results.
        value: In percent, or as the score counts.
        arguments: What it depends on, such as sacreBLEU's signature.
        is_of_corpus: Whether the test set is a split of the training corpus.
    """

    split: str
    name: str
    value: float
    arguments: dict[str, Any]
    is_of_corpus: bool


def scores_of(content: dict[str, Any]) -> Iterator[Score]:
    """The figures that go into a card's metadata."""
    for split, test in _tests(content).items():
        for name in _METRICS[_task(content["recipe"])]:
            value, arguments = test.get(name), {}
            if isinstance(value, dict):
                arguments = {"signature": value["signature"]}
                value = value["score"]
            if "version" in test:
                arguments = {"version": test["version"]}
            if value is not None:
                is_of_corpus = split in content["results"]["tests"]
                yield Score(split, name, round(value, 2), arguments, is_of_corpus)


def metadata_of(content: dict[str, Any]) -> ModelCardData:
    """What stands at the head of a card, with the scores in the format `model-index`."""
    recipe = content["recipe"]
    task, dataset = _task(recipe), content.get("dataset", {})
    tag = _PIPELINE_TAGS[task]
    results = [
        EvalResult(
            task_type=tag,
            task_name=_TASK_NAMES[task],
            dataset_type=(dataset.get("id") or _corpus(recipe))
            if score.is_of_corpus
            else score.split,
            dataset_name=f"{_corpus(recipe)} {score.split}" if score.is_of_corpus else score.split,
            dataset_split=score.split if score.is_of_corpus else None,
            dataset_revision=dataset.get("revision") if score.is_of_corpus else None,
            metric_type=_METRICS[task][score.name],
            metric_name=score_name(score.name),
            metric_value=score.value,
            metric_args=score.arguments or None,
        )
        for score in scores_of(content)
    ]
    languages = list(content.get("languages", []))
    if not languages and task == TranslationRecipe.task:
        languages = [recipe["source_lang"], recipe["target_lang"]]
    return ModelCardData(
        language=languages or None,
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag=tag,
        tags=["vanilla_transformer"],
        datasets=[dataset["id"]] if dataset else None,
        metrics=sorted({result.metric_type for result in results}) or None,
        model_name=recipe["name"],
        eval_results=results or None,
    )


def eval_results_of(content: dict[str, Any]) -> str | None:
    """The scores as `.eval_results/*.yaml` has them, by which a data set lists models.

    That is for test sets on the Hub; None for others, which have no id there. A data set decides
    what it calls its tasks; for one that has not, a task is `SPLIT_SCORE`.
    """
    dataset = content.get("dataset")
    if not dataset:
        return None
    entries = [
        EvalResultEntry(
            dataset_id=dataset["id"],
            task_id=f"{score.split}_{score.name}",
            value=score.value,
            dataset_revision=dataset.get("revision"),
            notes=", ".join(f"{name} {value}" for name, value in score.arguments.items()) or None,
        )
        for score in scores_of(content)
        if score.is_of_corpus
    ]
    if not entries:
        return None
    text: str = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False)
    return text


# ---------------------------------------------------------------------------------------- the card


def render_card(
    content: dict[str, Any],
    entries: list[dict[str, Any]],
    *,
    repository: str | None = None,
    has_curve: bool = True,
) -> str:
    """The card as Markdown.

    Args:
        content: As `content_of` gives it.
        entries: Of the log.
        repository: Where the model is to be on the Hub, with its code; else the reader trains it.
        has_curve: Whether the picture of the curve lies beside the card.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
    environment.filters |= {
        "cell": lambda text: text.replace("|", "\\|"),
        "count": lambda number: f"{number:,.0f}",
        "figure": figure,
        "interval": interval,
        "question_groups": question_groups,
        "score": score_name,
    }
    recipe, results, tests = content["recipe"], content["results"], _tests(content)
    task, training = _task(recipe), results["training"]
    validation = [entry for entry in entries if entry["kind"] == "validation"]
    item = TextToTextTask.item if writes_text(recipe) else _ITEMS[task]
    # Before there were other tasks, the items were in the name.
    speed = training.get("items_per_second", training.get("target_tokens_per_second"))
    card = environment.get_template("model_card.md.jinja").render(
        content=content,
        metadata=metadata_of(content).to_yaml(),
        task=task,
        recipe=recipe,
        results=results,
        tests=tests,
        versions=" and ".join(sorted({test.get("version", "") for test in tests.values()})),
        architecture=content.get("architecture", recipe["architecture"]),
        facts=list(facts_of(content)),
        writes_text=writes_text(recipe),
        item=item,
        speed=speed,
        energy=energy_of(results),
        limitations=list(limitations_of(content)),
        stages=content.get("stages", []),
        exports=content.get("exports", []),
        validation=validation,
        columns=columns_of(recipe, validation),
        repository=repository,
        model=repository or f"runs/{recipe['name']}/model",
        has_curve=has_curve,
    )
    # Where a part is left out, the blank lines around it meet.
    return re.sub(r"\n{3,}", "\n\n", card)


def write_card(run: Path, folder: Path, repository: str) -> None:
    """Writes a run's card and all that it names into `folder`, as a repository has them.

    Raises:
        ValueError: There is no finished run.
    """
    found = Run.read(run)
    content, log, curve = content_of(found), run / "training_log.jsonl", run / "training.png"
    name = found.recipe.name
    card = render_card(content, read_log(log), repository=repository, has_curve=curve.is_file())
    (folder / CARD).write_text(card, "utf-8")
    (folder / f"{name}.json").write_text(written(content), "utf-8")
    (folder / f"{name}.jsonl").write_bytes(log.read_bytes())
    if curve.is_file():
        (folder / f"{name}.png").write_bytes(curve.read_bytes())
    if (scores := eval_results_of(content)) is not None:
        (folder / ".eval_results").mkdir(exist_ok=True)
        (folder / ".eval_results" / f"{name}.yaml").write_text(scores, "utf-8")


def written(content: dict[str, Any]) -> str:
    """A card's content as the text of its file."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
