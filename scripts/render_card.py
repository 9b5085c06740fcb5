"""Render the model card of a run from what the run wrote; nothing on a card is typed.

    python scripts/render_card.py runs/multi30k-en-de --hardware "2 cores of an AMD EPYC"

writes `model_cards/NAME.md`, and beside it the results file, the log and the curve it comes from.
"""

import argparse
import dataclasses
import json
import re
import shlex
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2

from vanilla_transformer import VanillaTransformerConfig, VanillaTransformerForConditionalGeneration
from vanilla_transformer.data.corpora import is_hub_id
from vanilla_transformer.inspection.curves import plot_training, score_name
from vanilla_transformer.recipes import (
    InferenceRecipe,
    PretrainingRecipe,
    QuestionAnsweringRecipe,
    Recipe,
    TranslationRecipe,
    changed,
    find_recipe,
    read_recipe,
)
from vanilla_transformer.training.inference import InferenceTask
from vanilla_transformer.training.pretraining import MaskedLanguageModelingTask
from vanilla_transformer.training.question_answering import QuestionAnsweringTask
from vanilla_transformer.training.translation import TextToTextTask

CARD = """\
---
library_name: transformers
license: apache-2.0
{% if recipe.task == "translation" %}
language: [{{ recipe.source_lang }}, {{ recipe.target_lang }}]
{% endif %}
tags: [{{ tag }}, vanilla_transformer]
---

# {{ recipe.name }}

{{ recipe.description }}. Rendered by `scripts/render_card.py` from
[`{{ recipe.name }}.json`]({{ recipe.name }}.json); the log is
[`{{ recipe.name }}.jsonl`]({{ recipe.name }}.jsonl).

{% if tests %}
{% include recipe.task %}
{% endif %}
{% if recipe.published %}
Published: {{ recipe.published }}.
{% endif %}

| | |
|---|---|
| command | `{{ command }}` |
| hardware | {{ hardware }} |
| software | torch {{ results.environment.torch }}, \
transformers {{ results.environment.transformers }}, \
Python {{ results.environment.python }} |
| parameters | {{ results.parameters|count }} (vocabulary {{ results.vocabulary }}) |
| architecture | {% for name, value in architecture.items() %}{{ name }} {{ value }}\
{{ ", " if not loop.last }}{% endfor %} |
{% for name, text in facts %}
| {{ name }} | {{ text }} |
{% endfor %}
| updates | {{ results.training.updates|count }} of at most \
{% if writes_text %}
{{ recipe.training.max_target_tokens|count }} padded target tokens |
{% else %}
{{ recipe.training.max_source_tokens|count }} padded tokens and \
{{ recipe.training.max_target_tokens|count }} examples |
{% endif %}
| time | {{ "%.1f"|format(results.training.seconds / 60) }} minutes, validation and saving \
included |
| speed | {{ results.training.items_per_second|count }} {{ item }} a second |
| final model | {% if recipe.training.average_last == 1 %}
the last checkpoint |
{% else %}
mean of the last {{ recipe.training.average_last }} checkpoints, one every \
{{ recipe.training.checkpoint_every }} updates |
{% endif %}
{% if stages %}

What it starts from was trained before:

| stage | command | updates | minutes | final scores |
|---|---|---|---|---|
{% for stage in stages %}
| {{ stage.name }} | `{{ stage.command }}` | {{ stage.updates|count }} | \
{{ "%.1f"|format(stage.seconds / 60) }} | \
{% for name, value in stage.scores.items() %}{{ name|score }} {{ value|figure(name) }}\
{{ ", " if not loop.last }}{% endfor %} |
{% endfor %}
{% endif %}
{% if remark %}

{{ remark }}
{% endif %}

![Learning curve]({{ recipe.name }}.png)

| update | minutes |{% for _, title in columns %} {{ title }} |{% endfor %}

|---|---|{{ "---|" * columns|length }}
{% for entry in validation %}
| {{ entry["update"] }} | {{ "%.1f"|format(entry.seconds / 60) }} |\
{% for name, _ in columns %} {{ entry[name]|figure(name) }} |{% endfor %}

{% endfor %}

The last row is the {{ "final" if recipe.training.average_last == 1 else "averaged" }} model.
"""

TRANSLATION = """\
| test set | sentences | BLEU | chrF | TER | decoding, seconds |
|---|---|---|---|---|---|
{% for title, test in tests.items() %}
| {{ title }} | {{ test.sentences }} | {{ "%.2f"|format(test.bleu.score) }} | \
{{ "%.2f"|format(test.chrf.score) }} | {{ "%.2f"|format(test.ter.score) }} | \
{{ "%.0f"|format(test.seconds) }} |
{% endfor %}

{% set first = namespace(how="") %}
{% for title, test in tests.items() %}
{% set how %}
Signatures: `{{ test.bleu.signature }}`, `{{ test.chrf.signature }}`, `{{ test.ter.signature }}`.
Beam {{ test.decoding.num_beams }}, alpha {{ test.decoding.length_penalty }}
({{ test.decoding.length_penalty_formula }} formula), output limit source +
{{ test.decoding.max_tokens_over_source }}.
{% endset %}
{% if loop.first %}
{% set first.how = how %}
{{ how }}
{%- elif how != first.how %}
{{ title }} differs: {{ how }}
{%- endif %}
{% endfor %}
"""

QUESTION_ANSWERING = """\
| test set | questions | exact match | F1 | seconds |
|---|---|---|---|---|
{% for title, test in tests.items() %}
| {{ title }} | {{ test.total|count }} | {{ test|interval("exact_match") }} | \
{{ test|interval("f1") }} | {{ test.seconds|figure(digits=0) }} |
{% endfor %}

In percent, as the official script counts (SQuAD {{ versions }}), with 95 % intervals.
{% for title, test in tests.items() if test.missing %}
Of {{ title }}, {{ test.missing }} questions have no prediction.
{% endfor %}
{% for title, test in tests.items() %}
{% set groups = test|question_groups %}
{% if groups %}

| {{ title }}, by question | questions | exact match | F1 | precision | recall |
|---|---|---|---|---|---|
{% for name, group in groups.items() %}
| {{ name }} | {{ group.total|count }} | {{ group|interval("exact_match") }} | \
{{ group|interval("f1") }} | {{ group.precision|figure }} | {{ group.recall|figure }} |
{% endfor %}
{% endif %}
{% endfor %}

"""

INFERENCE = """\
{% macro row(name, figures) %}
| {{ name|cell }} | {{ figures.examples|count }} | {{ figures|interval("accuracy") }} | \
{{ figures.macro_f1|figure }} | {{ figures.majority_accuracy|figure }} | \
{{ figures.hypothesis_only_accuracy|figure }} |
{% endmacro %}
| test set | pairs | accuracy | macro-F1 | majority | hypothesis only |
|---|---|---|---|---|---|
{% for title, test in tests.items() %}
{{ row(title, test) -}}
{% endfor %}

In percent; accuracy with 95 % intervals. Majority answers the commonest label of the test set,
hypothesis only is naive Bayes over the words of the hypothesis.
{% for title, test in tests.items() %}
{% set answers = test.labels + (["no label"] if test.unanswered else []) %}

| {{ title }}: gold \\ predicted |{% for name in answers %} {{ name }} |{% endfor %} \
precision | recall | F1 |
|---|{{ "---|" * answers|length }}---|---|---|
{% for name in test.labels %}
| {{ name }} |{% for count in test.confusion[loop.index0][:answers|length] %} \
{{ count|count }} |{% endfor %}\
{% for score in ("precision", "recall", "f1") %} {{ test.per_label[name][score]|figure }} |\
{% endfor %}

{% endfor %}
{% if test.calibration %}

Expected calibration error: {{ test.calibration.expected_error|figure }}.
{% endif %}
{% if test.slices %}

| {{ title }}, slices | pairs | accuracy | macro-F1 | majority | hypothesis only |
|---|---|---|---|---|---|
{% for group, slices in test.slices.items() %}
{% for name, figures in slices.items() %}
{{ row(group ~ ": " ~ name, figures) -}}
{% endfor %}
{% endfor %}
{% endif %}
{% endfor %}

"""

PRETRAINING = """\
| test set | loss | perplexity | accuracy |
|---|---|---|---|
{% for title, test in tests.items() %}
| {{ title }} | {{ test.loss|figure("loss") }} | {{ test.perplexity|figure }} | \
{{ test.accuracy|figure }} |
{% endfor %}

Of the tokens that were masked: loss in nats, accuracy in percent.

"""

TEMPLATES = {
    "card": CARD,
    TranslationRecipe.task: TRANSLATION,
    QuestionAnsweringRecipe.task: QUESTION_ANSWERING,
    InferenceRecipe.task: INFERENCE,
    PretrainingRecipe.task: PRETRAINING,
}
# By which the Hub sorts models.
TAGS = {
    TranslationRecipe.task: "translation",
    QuestionAnsweringRecipe.task: "question-answering",
    InferenceRecipe.task: "natural-language-inference",
    PretrainingRecipe.task: "fill-mask",
}
ITEMS = {
    QuestionAnsweringRecipe.task: QuestionAnsweringTask.item,
    InferenceRecipe.task: InferenceTask.item,
    PretrainingRecipe.task: MaskedLanguageModelingTask.item,
}

# What the command says in another way, or what does not change the run.
NOT_SET = ("name", "corpus", "initial_model", "description", "data_source", "published")

# Directories of a run that hold a model: the run's name says more.
MODELS_OF_A_RUN = ("model", "best", "ema")

# A path that nobody named, at its beginning: `/home/me/`, `~/data/`, `../`.
FOLDERS = re.compile(r"(?<![\w.:/])(?:~|\.{1,2})?/(?:[^\s/,;'\"`]+/)+")


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run: its directory, its recipe and the content of its `results.json`."""

    directory: Path
    recipe: Recipe
    results: dict[str, Any]

    @classmethod
    def read(cls, directory: Path) -> "Run":
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


# ------------------------------------------------------------------------------- names for paths


def public_name(place: str) -> str:
    """A corpus or a model without the way to it: a Hub id as it is, of a path the last name."""
    if is_hub_id(place):
        return place
    path = Path(place)
    if path.name == "model" and path.parent.name:
        return path.parent.name
    if path.name in MODELS_OF_A_RUN and path.parent.name:
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
    return FOLDERS.sub("", value)


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
        registered, **{name: getattr(recipe, name) for name in NOT_SET if name != "name"}
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


def facts_of(run: Run) -> Iterator[tuple[str, str]]:
    """What a run of one task has to say that others have not, as rows of a table."""
    recipe, results = run.recipe, run.results
    encoding = results["data"]["encoding"]
    if recipe.initial_model is not None:
        new, left = (results["initialised"][key] for key in ("newly_initialised", "left_out"))
        yield (
            "starts from",
            f"{public_name(recipe.initial_model)}; newly initialised: {in_short(new)}; "
            f"left out: {in_short(left)}",
        )
    if not isinstance(recipe, TranslationRecipe):
        corpus = ", ".join(map(public_name, corpora_of(recipe)))
        validation = recipe.validation_split or f"{recipe.held_out:,} texts held out of it"
        yield "data", f"{corpus}: {recipe.train_split}; validated on {validation}"
    if isinstance(recipe, QuestionAnsweringRecipe) and recipe.route == "span":
        questions = "questions" if recipe.cloze_questions is None else "cloze questions"
        yield (
            f"training {questions}",
            f"{encoding['questions']:,} in {encoding['windows']:,} windows",
        )
        yield (
            "windows",
            f"{recipe.max_length} tokens, {recipe.stride} of them shared by neighbours; questions "
            f"of at most {recipe.max_question_length}, answers of at most "
            f"{recipe.max_answer_length} tokens",
        )
        if recipe.has_no_answer:
            threshold = results["fitted"]["no_answer_threshold"]
            yield "no answer", f"scores above {threshold:.3f}, fitted on the validation data"
    elif isinstance(recipe, PretrainingRecipe):
        yield (
            "training texts",
            f"{encoding['texts']:,} in {encoding['blocks']:,} blocks of at most "
            f"{recipe.max_length} tokens",
        )
    else:
        yield "training pairs", f"{encoding['kept']:,}"
        if not isinstance(recipe, TranslationRecipe):
            yield "longest pair", f"{recipe.max_length} tokens"
    if isinstance(recipe, PretrainingRecipe):
        yield "masked", f"{100 * recipe.masked_share:g} % of the tokens"


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


def columns_of(run: Run, validation: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Scores of the validations, each with the head of its column."""
    beams = ""
    if writes_text(run.recipe):
        beams = f" (beam {run.recipe.training.validation_beams})"
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


def writes_text(recipe: Recipe) -> bool:
    """Whether the loss is that of target tokens."""
    return recipe.model_class is VanillaTransformerForConditionalGeneration


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


def render(
    run: Run,
    hardware: str,
    *,
    remark: str = "",
    evaluations: dict[str, dict[str, Any]],
    stages: list[Run],
    entries: list[dict[str, Any]],
) -> str:
    """The card as Markdown."""
    environment = jinja2.Environment(
        loader=jinja2.DictLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "cell": lambda text: text.replace("|", "\\|"),
        "count": lambda number: f"{number:,.0f}",
        "figure": figure,
        "interval": interval,
        "question_groups": question_groups,
        "score": score_name,
    }
    tests = run.results["tests"] | evaluations
    validation = [entry for entry in entries if entry["kind"] == "validation"]
    card = environment.get_template("card").render(
        recipe={"task": run.recipe.task, **dataclasses.asdict(run.recipe)},
        results=run.results,
        tag=TAGS[run.recipe.task],
        tests=tests,
        versions=" and ".join(sorted({test.get("version", "") for test in tests.values()})),
        command=run.command,
        hardware=hardware,
        architecture=architecture_of(run),
        facts=list(facts_of(run)),
        writes_text=writes_text(run.recipe),
        item=TextToTextTask.item if writes_text(run.recipe) else ITEMS[run.recipe.task],
        stages=[described(stage) for stage in stages],
        remark=remark,
        validation=validation,
        columns=columns_of(run, validation),
    )
    # Where a part is left out, the blank lines around it meet.
    return re.sub(r"\n{3,}", "\n\n", card)


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


def evaluation(text: str) -> tuple[str, dict[str, Any]]:
    """Title and scores from `TITLE=FILE.json`."""
    title, equals, path = text.rpartition("=")
    if not (title and equals):
        raise argparse.ArgumentTypeError(f"{text!r} must be TITLE=FILE.json")
    return title, json.loads(Path(path).read_text("utf-8"))


def main() -> None:
    """Renders the card of one run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a finished run's directory")
    parser.add_argument("--hardware", required=True, help="what it ran on, in words")
    parser.add_argument("--remark", default="", help="what a reader must know of how it ran")
    parser.add_argument(
        "--evaluation",
        type=evaluation,
        action="append",
        default=[],
        metavar="TITLE=FILE.json",
        help="scores that `vanilla-transformer evaluate --json` wrote; may be repeated",
    )
    parser.add_argument(
        "--stage",
        type=Path,
        action="append",
        default=[],
        metavar="RUN",
        help="the run that the initial model comes from; may be repeated, earliest first",
    )
    parser.add_argument("--output", type=Path, default=Path("model_cards"), help="[model_cards]")
    arguments = parser.parse_args()
    run, output = Run.read(arguments.run), arguments.output
    stages = [Run.read(stage) for stage in arguments.stage]
    log = run.directory / "training_log.jsonl"
    places = [place for one in (run, *stages) for place in places_of(one.recipe)]
    evaluations = without_paths(dict(arguments.evaluation), places)
    card = render(
        dataclasses.replace(run, results=without_paths(run.results, places)),
        arguments.hardware,
        remark=arguments.remark,
        evaluations=evaluations,
        stages=stages,
        entries=[json.loads(line) for line in log.read_text("utf-8").splitlines()],
    )
    recipe = {"task": run.recipe.task, **dataclasses.asdict(run.recipe)}
    content: dict[str, Any] = {"recipe": recipe, "results": run.results}
    if evaluations:
        content["evaluations"] = evaluations
    if stages:
        content["stages"] = [described(stage) for stage in stages]
    content = without_paths(content, places)
    output.mkdir(exist_ok=True)
    name = run.recipe.name
    (output / f"{name}.md").write_text(card, "utf-8")
    (output / f"{name}.json").write_text(
        json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8"
    )
    shutil.copy(log, output / f"{name}.jsonl")
    plot_training(output / f"{name}.jsonl", output / f"{name}.png")
    print(output / f"{name}.md")


if __name__ == "__main__":
    main()
