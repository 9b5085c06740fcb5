"""Render the model card of a run from what the run wrote; nothing on a card is typed.

    python scripts/render_card.py runs/multi30k-en-de --hardware "2 cores of an AMD EPYC"

writes `model_cards/NAME.md`, and beside it the results file, the log and the curve it comes from;

    python scripts/render_card.py --again

renders every card of `model_cards/` from the files beside it.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from vanilla_transformer.export.model_card import (
    Run,
    content_of,
    eval_results_of,
    read_log,
    render_card,
    written,
)
from vanilla_transformer.inspection.curves import plot_training


def evaluation(text: str) -> tuple[str, dict[str, Any]]:
    """Title and scores from `TITLE=FILE.json`."""
    title, equals, path = text.rpartition("=")
    if not (title and equals):
        raise argparse.ArgumentTypeError(f"{text!r} must be TITLE=FILE.json")
    return title, json.loads(Path(path).read_text("utf-8"))


def render_again(folder: Path) -> list[Path]:
    """Renders a folder's cards from their JSON and logs; gives those that were other before."""
    changed = []
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text("utf-8"))
        text = render_card(content, read_log(path.with_suffix(".jsonl")))
        card = path.with_suffix(".md")
        if not card.exists() or card.read_text("utf-8") != text:
            card.write_text(text, "utf-8")
            changed.append(card)
    return changed


def render(arguments: argparse.Namespace) -> Path:
    """Renders the card of one run."""
    run, output = Run.read(arguments.run), arguments.output
    content = content_of(
        run,
        hardware=arguments.hardware,
        remark=arguments.remark,
        languages=tuple(arguments.language),
        evaluations=dict(arguments.evaluation),
        stages=[Run.read(stage) for stage in arguments.stage],
        exports=[
            json.loads((path / "export.json").read_text("utf-8")) for path in arguments.export
        ],
    )
    log = run.directory / "training_log.jsonl"
    output.mkdir(exist_ok=True)
    name = run.recipe.name
    card: Path = output / f"{name}.md"
    card.write_text(render_card(content, read_log(log)), "utf-8")
    (output / f"{name}.json").write_text(written(content), "utf-8")
    shutil.copy(log, output / f"{name}.jsonl")
    plot_training(output / f"{name}.jsonl", output / f"{name}.png")
    if (scores := eval_results_of(content)) is not None:
        (output / f"{name}.yaml").write_text(scores, "utf-8")
    return card


def main() -> None:
    """Renders the card of one run, or every card again."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, nargs="?", help="a finished run's directory")
    parser.add_argument("--again", action="store_true", help="render the cards of --output again")
    parser.add_argument("--hardware", help="what it ran on, in words [the device's own name]")
    parser.add_argument("--remark", default="", help="what a reader must know of how it ran")
    parser.add_argument(
        "--language",
        action="append",
        default=[],
        help="of the texts, such as en; may be repeated [those of a translation]",
    )
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
    parser.add_argument(
        "--export",
        type=Path,
        action="append",
        default=[],
        metavar="DIRECTORY",
        help="what `vanilla-transformer export` wrote of the model; may be repeated",
    )
    parser.add_argument("--output", type=Path, default=Path("model_cards"), help="[model_cards]")
    arguments = parser.parse_args()
    if (arguments.run is None) != arguments.again:
        parser.error("give either a run or --again")
    for card in render_again(arguments.output) if arguments.again else [render(arguments)]:
        print(card)


if __name__ == "__main__":
    main()
