"""Render the model card of a run from what the run wrote; nothing on a card is typed.

    python scripts/render_card.py runs/multi30k-en-de --hardware "2 cores of an AMD EPYC"

writes `model_cards/NAME.md`, and beside it the results file, the log and the curve it comes from.
"""

import argparse
import json
import shutil
from pathlib import Path

import jinja2

from vanilla_transformer.inspection.curves import plot_training

TEMPLATE = """\
---
library_name: transformers
license: apache-2.0
language: [{{ recipe.source_lang }}, {{ recipe.target_lang }}]
tags: [translation, vanilla_transformer]
---

# {{ recipe.name }}

{{ recipe.description }}. Rendered by `scripts/render_card.py` from
[`{{ recipe.name }}.json`]({{ recipe.name }}.json); the log is
[`{{ recipe.name }}.jsonl`]({{ recipe.name }}.jsonl).

| test set | sentences | BLEU | chrF | TER | decoding, seconds |
|---|---|---|---|---|---|
{% for split, test in results.tests.items() -%}
| {{ split }} | {{ test.sentences }} | {{ "%.2f"|format(test.bleu.score) }} | \
{{ "%.2f"|format(test.chrf.score) }} | {{ "%.2f"|format(test.ter.score) }} | \
{{ "%.0f"|format(test.seconds) }} |
{% endfor %}
Signatures: `{{ first.bleu.signature }}`, `{{ first.chrf.signature }}`, `{{ first.ter.signature }}`.
Beam {{ recipe.decoding.num_beams }}, alpha {{ recipe.decoding.length_penalty }}
({{ recipe.decoding.length_penalty_formula }} formula), output limit source +
{{ recipe.decoding.max_tokens_over_source }}.
{% if recipe.published %}Published: {{ recipe.published }}.
{% endif %}
| | |
|---|---|
| command | `{{ command }}` |
| hardware | {{ hardware }} |
| software | torch {{ results.environment.torch }}, \
transformers {{ results.environment.transformers }}, \
Python {{ results.environment.python }} |
| parameters | {{ "{:,}".format(results.parameters) }} (vocabulary {{ results.vocabulary }}) |
| architecture | {% for name, value in recipe.architecture.items() %}{{ name }} {{ value }}\
{{ ", " if not loop.last }}{% endfor %} |
| training pairs | {{ "{:,}".format(results.data.kept - results.data.too_long) }} |
| updates | {{ "{:,}".format(results.training.updates) }} of at most \
{{ "{:,}".format(recipe.training.max_target_tokens) }} padded target tokens |
| time | {{ "%.1f"|format(results.training.seconds / 60) }} minutes, validation and saving \
included |
| speed | {{ "{:,.0f}".format(results.training.target_tokens_per_second) }} target tokens a second |
| final model | mean of the last {{ recipe.training.average_last }} checkpoints, one every \
{{ recipe.training.checkpoint_every }} updates |
{% if remark %}
{{ remark }}
{% endif %}
![Learning curve]({{ recipe.name }}.png)

| update | minutes | validation loss | perplexity | validation BLEU (beam \
{{ recipe.training.validation_beams }}) |
|---|---|---|---|---|
{% for entry in validation -%}
| {{ entry["update"] }} | {{ "%.1f"|format(entry.seconds / 60) }} | \
{{ "%.3f"|format(entry.loss) }} | \
{{ "%.2f"|format(entry.perplexity) }} | {{ "%.2f"|format(entry.bleu) }} |
{% endfor %}
The last row is the averaged model.
"""


def main() -> None:
    """Renders the card of one run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a finished run's directory")
    parser.add_argument("--hardware", required=True, help="what it ran on, in words")
    parser.add_argument("--remark", default="", help="what a reader must know of how it ran")
    parser.add_argument("--output", type=Path, default=Path("model_cards"), help="[model_cards]")
    arguments = parser.parse_args()
    run, output = arguments.run, arguments.output
    recipe = json.loads((run / "recipe.json").read_text("utf-8"))
    results = json.loads((run / "results.json").read_text("utf-8"))
    # Where the data lay on the machine of the run is nobody else's business.
    data = recipe["corpus"] = results["data"]["corpus"] = Path(recipe["corpus"]).name
    log = (run / "training_log.jsonl").read_text("utf-8")
    entries = [json.loads(line) for line in log.splitlines()]
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    card = environment.from_string(TEMPLATE).render(
        recipe=recipe,
        results=results,
        first=next(iter(results["tests"].values())),
        validation=[entry for entry in entries if entry["kind"] == "validation"],
        command=f"vanilla-transformer train {recipe['name']} --data {data}",
        hardware=arguments.hardware,
        remark=arguments.remark,
    )
    output.mkdir(exist_ok=True)
    name = recipe["name"]
    (output / f"{name}.md").write_text(card, "utf-8")
    (output / f"{name}.json").write_text(
        json.dumps({"recipe": recipe, "results": results}, indent=2, ensure_ascii=False) + "\n",
        "utf-8",
    )
    shutil.copy(run / "training_log.jsonl", output / f"{name}.jsonl")
    plot_training(output / f"{name}.jsonl", output / f"{name}.png")
    print(output / f"{name}.md")


if __name__ == "__main__":
    main()
