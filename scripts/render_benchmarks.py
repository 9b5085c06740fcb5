"""Write the README's benchmark tables from the results files; no figure in them is typed.

    python scripts/render_benchmarks.py
    python scripts/render_benchmarks.py --check

The tables stand between `<!-- benchmarks -->` and `<!-- /benchmarks -->`. With `--check` nothing is
written: what would change is shown, and the exit status is 1 if anything would.
"""

import argparse
import dataclasses
import difflib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarking import INT8, OURS, RESULTS

from vanilla_transformer.atomic_file import atomic_file

README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN, END = "<!-- benchmarks -->", "<!-- /benchmarks -->"
NAMES = ("training", "generation")
TITLES = {"training": "Training", "generation": "Translating"}
# A table with more columns does not fit a page; it is divided by the first setting that differs.
MOST_COLUMNS = 4

Setting = tuple[tuple[str, str], ...]
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Figure:
    """A quantity that rows may hold, and that gets tables of its own.

    Attributes:
        title: What the table shows.
        cell: Text of a row's cell, given the row of the reference in the same column, if any.
        order: What is best is the first by this key.
        has_peers: Whether ours is compared with the fastest peer.
    """

    title: str
    cell: Callable[[Row, Row | None], str]
    order: Callable[[Row], float]
    has_peers: bool = False


def _speed(row: Row, reference: Row | None) -> str:
    notes = []
    if row.get("ratio") is not None:
        notes.append(f"{row['ratio']:.2f}×")
    if row.get("share_of_peak") is not None:
        notes.append(f"{row['share_of_peak']:.0%}")
    return f"{row['tokens_per_second']:,.0f}" + (f" ({', '.join(notes)})" if notes else "")


def _seconds(row: Row, reference: Row | None) -> str:
    ratio = f" ({row['ratio']:.2f}×)" if row.get("ratio") is not None else ""
    return f"{row['seconds']:.2f}{ratio}"


def _memory(row: Row, reference: Row | None) -> str:
    parts = []
    for name in ("memory_added", "memory_total"):
        ratio = ""
        if reference is not None and reference.get(name):
            ratio = f" ({row[name] / reference[name]:.2f}×)"
        parts.append(f"{row[name] / 2**20:,.0f}{ratio}")
    return " / ".join(parts)


FIGURES: dict[str, Figure] = {
    "tokens_per_second": Figure(
        "target tokens a second",
        _speed,
        lambda row: -float(row["tokens_per_second"]),
        has_peers=True,
    ),
    "seconds": Figure("seconds", _seconds, lambda row: float(row["seconds"])),
    "memory_added": Figure(
        "MiB that a call adds to what is held between calls / that the process takes at its peak",
        _memory,
        lambda row: float(row["memory_added"]),
    ),
}


def render(results: Path) -> str:
    """Everything that stands between the markers.

    Args:
        results: Directory of `benchmark_training.json` and `benchmark_generation.json`.

    Raises:
        ValueError: Neither is there.
    """
    found = [results / f"benchmark_{name}.json" for name in NAMES]
    parts = [render_file(path) for path in found if path.exists()]
    if not parts:
        raise ValueError(
            f"{results} holds neither {found[0].name} nor {found[1].name}; run the benchmarks "
            "with --output first"
        )
    return "\n\n".join(parts)


def render_file(path: Path) -> str:
    """The tables of one benchmark, and on what machine and how they were measured."""
    content = json.loads(path.read_text(encoding="utf-8"))
    runs = content["runs"]
    blocks = []
    for key, figure in FIGURES.items():
        # What was measured under other circumstances than the rest gets a table of its own.
        groups: dict[tuple[str, ...], list[tuple[Setting, Row, str | None]]] = {}
        for run in runs:
            for row in run["rows"]:
                if key in row:
                    setting = {**run["setting"], **row["setting"]}
                    groups.setdefault(tuple(setting), []).append(
                        (tuple(setting.items()), row, run.get("reference"))
                    )
        for cells in groups.values():
            blocks += render_tables(figure, cells)
    title = TITLES.get(content["name"], content["name"])
    return "\n\n".join([f"**{title}**", *blocks, describe_runs(runs)])


def render_tables(figure: Figure, cells: Sequence[tuple[Setting, Row, str | None]]) -> list[str]:
    """Contenders down, settings across; several tables where there are many settings.

    Args:
        figure: What to show.
        cells: Setting, row and the name of the reference.
    """
    columns = list(dict.fromkeys(setting for setting, _, _ in cells))
    differing = [
        number
        for number in range(len(columns[0]))
        if len({setting[number] for setting in columns}) > 1
    ]
    if len(columns) > MOST_COLUMNS and len(differing) > 1:
        parts = dict.fromkeys(setting[differing[0]] for setting in columns)
        return [
            table
            for part in parts
            for table in render_tables(figure, [c for c in cells if c[0][differing[0]] == part])
        ]
    by_place = {(row["contender"], setting): row for setting, row, _ in cells}
    best = {s: min((r for t, r, _ in cells if t == s), key=figure.order) for s in columns}
    references = {setting: name for setting, _, name in cells}
    contenders = list(dict.fromkeys(row["contender"] for _, row, _ in cells))
    is_contest = len(contenders) > 1
    lines = []
    for contender in contenders:
        line = [contender]
        for setting in columns:
            row = by_place.get((contender, setting))
            if row is None:
                line.append("–")
                continue
            text = figure.cell(row, by_place.get((references[setting] or "", setting)))
            line.append(f"**{text}**" if row is best[setting] and is_contest else text)
        lines.append(line)
    if figure.has_peers:
        lines += compare_with_peers(by_place, columns)
    header = ["", *(", ".join(f"{setting[n][1]}" for n in differing) for setting in columns)]
    same = [f"{name} {value}" for n, (name, value) in enumerate(columns[0]) if n not in differing]
    named = [columns[0][n][0] for n in differing]
    notes = [", ".join(same)] if same else []
    if named:
        notes.append(f"columns: {', '.join(named)}")
    if notes_of_cells := explain_cells(figure, cells):
        notes.append(f"in parentheses: {notes_of_cells}")
    caption = f"{figure.title[0].upper()}{figure.title[1:]}"
    return [f"{caption} ({'; '.join(notes)}):\n\n{as_markdown(header, lines)}"]


def compare_with_peers(
    rows: Mapping[tuple[str, Setting], Row], columns: Sequence[Setting]
) -> list[list[str]]:
    """A line that names the fastest peer of each column, and one for those with 8 bits a weight."""
    lines = []
    for suffix in ("", INT8):
        line = [f"*{OURS}{suffix} against the fastest peer*"]
        for setting in columns:
            ours = rows.get((f"{OURS}{suffix}", setting))
            peers = {
                name: row["ours_over_it"]
                for (name, where), row in rows.items()
                if where == setting
                and not name.startswith(OURS)
                and name.endswith(INT8) == bool(suffix)
                and row.get("ours_over_it")
            }
            if ours is None or not ours.get("ours_over_it") or not peers:
                line.append("–")
                continue
            fastest = min(peers, key=peers.__getitem__)
            line.append(f"*{peers[fastest] / ours['ours_over_it']:.2f}× ({fastest})*")
        if any(cell != "–" for cell in line[1:]):
            lines.append(line)
    return lines


def explain_cells(figure: Figure, cells: Sequence[tuple[Setting, Row, str | None]]) -> str:
    """What the parentheses of a table hold."""
    parts = []
    references = {name for _, _, name in cells if name}
    if references and any(row.get("ratio") is not None for _, row, _ in cells):
        parts.append(f"ratio to {' or '.join(sorted(references))}")
    if figure.has_peers and any("share_of_peak" in row for _, row, _ in cells):
        parts.append("share of the machine's measured matrix-product peak")
    return ", ".join(parts)


def as_markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table; all columns but the first are aligned to the right."""
    rules = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rules, *lines))


def describe_runs(runs: Sequence[Row]) -> str:
    """A list: what was typed on what machine, one item for all runs of one command."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for run in runs:
        groups.setdefault((run["command"], run["date"].partition(" ")[0]), []).append(run)
    return "\n".join(
        f"- `{command}`: {'; '.join([date, *facts_of(group)])}"
        for (command, date), group in groups.items()
    )


def facts_of(runs: Sequence[Row]) -> list[str]:
    """The circumstances that runs of one command share."""
    first = runs[0]
    machine, peers = first["machine"], first.get("peers", {})
    packages = {name: machine[name] for name in ("torch", "transformers")} | peers
    facts = [
        machine.get("gpu") or f"{machine['processor']}, {machine['threads']} threads",
        ", ".join(f"{name} {version}" for name, version in packages.items()),
    ]
    if first.get("product_peak"):
        facts.append(f"matrix products at {first['product_peak'] / 1e9:,.0f} GFLOP/s")
    operations = {
        f"{row['flops_per_target_token'] / 1e6:,.0f}"
        for run in runs
        for row in run["rows"]
        if row.get("flops_per_target_token")
    }
    if operations:
        facts.append(f"{' and '.join(sorted(operations))} MFLOP a target token")
    loads = [run["load"] for run in runs if run.get("load") is not None]
    if loads:
        facts.append(f"other processes took {max(loads):.0%} of the machine")
    if first.get("missing"):
        facts.append(f"not installed: {', '.join(first['missing'])}")
    return facts


def insert(readme: str, tables: str) -> str:
    """`readme` with `tables` between the markers.

    Raises:
        ValueError: The two markers do not stand there once each, in this order.
    """
    if (readme.count(BEGIN), readme.count(END)) != (1, 1) or readme.index(BEGIN) > readme.index(
        END
    ):
        raise ValueError(
            f"the README must have one {BEGIN} and, after it, one {END}; put them where the "
            "tables are to stand"
        )
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{tables}\n{END}{after}"


def main() -> None:
    """Renders, or checks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="[scripts/results]")
    parser.add_argument("--readme", type=Path, default=README, help="[README.md]")
    parser.add_argument("--check", action="store_true", help="write nothing, fail if it differs")
    options = parser.parse_args()
    old = options.readme.read_text(encoding="utf-8")
    new = insert(old, render(options.results))
    if options.check:
        difference = difflib.unified_diff(
            old.splitlines(), new.splitlines(), "README.md", "as the results say", lineterm=""
        )
        if lines := list(difference):
            print("\n".join(lines))
            sys.exit(1)
    elif new != old:
        with atomic_file(options.readme) as temporary:
            temporary.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        raise SystemExit(str(error)) from None
