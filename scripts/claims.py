"""What the scripts that measure the paper's claims share: options, intervals, a page each.

A script `claim_<name>.py` measures, and gives a `Finding`. `publish` writes it as
`<name>.json` (the raw numbers, with command, machine and versions), `<name>.png` and `<name>.html`
(one page that needs no other file). No number reaches a page but from the record.

    python scripts/claims.py
    python scripts/claims.py --check

renders `claims.md` and the pictures anew from the records in `results/claims`. With `--check`
nothing is written: what would change in the text is shown, and the exit status is 1 if anything
would.
"""

import argparse
import base64
import dataclasses
import difflib
import importlib
import io
import json
import math
import shlex
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure

from vanilla_transformer.atomic_file import atomic_file
from vanilla_transformer.recipes.models import describe_machine, environment

# Student's t for 95% by degrees of freedom; few seeds are the rule here.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)

SCRIPTS = Path(__file__).resolve().parent
PAGE, RECORDS = SCRIPTS / "claims.md", SCRIPTS / "results" / "claims"
# In the order of the page.
CLAIMS = ("recurrence", "length", "table3", "training", "halves", "images")

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ finding.title }}</title>
<style>
  :root { color-scheme: light dark; --line: light-dark(#ccc, #555); }
  body { font: 16px/1.55 system-ui, sans-serif; max-width: 52rem; margin: 0 auto; padding: 1rem; }
  h1 { font-size: 1.4rem; } caption { text-align: left; font-weight: 600; padding: .5rem 0; }
  div.scroll { overflow-x: auto; } table { border-collapse: collapse; margin: .5rem 0 1.5rem; }
  td, th { padding: .3rem .7rem; border-top: 1px solid var(--line); text-align: right; }
  td:first-child, th:first-child { text-align: left; }
  td { font-variant-numeric: tabular-nums; } img { max-width: 100%; background: white; }
  footer { font-size: .85rem; opacity: .8; overflow-wrap: anywhere; }
</style>
<h1>{{ finding.title }}</h1>
<p><strong>The claim.</strong> {{ finding.claim }}</p>
<p><strong>How it is measured.</strong> {{ finding.method }}</p>
{% for line in finding.reading %}<p>{{ line }}</p>
{% endfor %}
<img alt="{{ finding.title }}" src="data:image/png;base64,{{ picture }}">
{% for table in finding.tables %}
<div class="scroll"><table><caption>{{ table.caption }}</caption>
<thead><tr>{% for name in table.columns %}<th>{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in table.rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
{% endfor %}
<p><strong>Limits.</strong> {{ finding.limits }}</p>
<footer><code>{{ record.command }}</code><br>{{ record.machine }}, {{ record.environment.threads }}
threads, torch {{ record.environment.torch }}, {{ "%.1f"|format(record.minutes) }} minutes</footer>
</html>
"""


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows as they are read: numbers are formatted already."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a script has measured.

    Attributes:
        name: Of its files.
        title: Of its page.
        claim: What the paper says, with its section.
        method: Models, data, sizes, seeds.
        reading: What the numbers say, written from them.
        tables: The numbers.
        figure: The same, drawn.
        limits: What they do not say.
        raw: Every number measured, as plain JSON.
    """

    name: str
    title: str
    claim: str
    method: str
    reading: Sequence[str]
    tables: Sequence[Table]
    figure: Figure
    limits: str
    raw: Any


def claim_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the options that all claims have."""
    parser = argparse.ArgumentParser(description=description)
    add = parser.add_argument
    add("--output", type=Path, default=Path("claims"), metavar="DIR", help="[claims]")
    add("--seeds", type=int, default=3, metavar="N", help="runs of each setting [3]")
    add("--device", default="cpu", help="[cpu]")
    add("--quick", action="store_true", help="so little that the numbers mean nothing: for a test")
    return parser


def publish(
    finding: Finding, output: Path, seconds: float, earlier: dict[str, Any] | None = None
) -> list[Path]:
    """Writes the three files of a finding, and prints its tables.

    Args:
        finding: What was measured.
        output: Directory, made if it is not there.
        seconds: What measuring took.
        earlier: A record whose numbers are part of the finding: its command is told before this
            one, and its minutes count.

    Returns:
        The files: numbers, picture, page.
    """
    command, minutes = _command(sys.argv), seconds / 60
    if earlier is not None:
        command = f"{earlier['command']} && {command}"
        minutes += earlier["minutes"]
    record = {
        "command": command,
        "machine": describe_machine(),
        "environment": environment(),
        "minutes": minutes,
        "numbers": finding.raw,
    }
    picture = drawn(finding)
    page = jinja2.Environment(autoescape=True, trim_blocks=True).from_string(_PAGE)
    text = page.render(finding=finding, record=record, picture=base64.b64encode(picture).decode())
    output.mkdir(parents=True, exist_ok=True)
    written = {
        "json": (json.dumps(record, indent=1, allow_nan=False) + "\n").encode(),
        "png": picture,
        "html": text.encode(),
    }
    paths = []
    for suffix, content in written.items():
        paths.append(output / f"{finding.name}.{suffix}")
        with atomic_file(paths[-1]) as file:
            file.write_bytes(content)
    print(f"\n{finding.title}")
    for table in finding.tables:
        print(f"\n{table.caption}")
        print("\n".join(aligned([table.columns, *table.rows])))
    print()
    print("\n".join(finding.reading))
    print(*paths, sep="\n")
    return paths


def drawn(finding: Finding) -> bytes:
    """The picture, as PNG."""
    buffer = io.BytesIO()
    finding.figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    return buffer.getvalue()


def _command(arguments: Sequence[str]) -> str:
    """The command line without where it wrote to, which is nobody else's business."""
    kept = [f"scripts/{Path(arguments[0]).name}"]
    rest = iter(arguments[1:])
    for argument in rest:
        if argument == "--output":
            next(rest, None)
        elif not argument.startswith("--output="):
            kept.append(argument)
    return shlex.join(["python", *kept])


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of text in columns: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95% interval by Student's t; infinite for one value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, math.inf
    t = _T95[len(values) - 2] if len(values) - 2 < len(_T95) else 1.96
    return mean, t * statistics.stdev(values) / math.sqrt(len(values))


def with_interval(values: Sequence[float], digits: int = 1) -> str:
    """Mean ± half its 95% interval, or the one value there is."""
    mean, half = interval(values)
    if math.isinf(half):
        return f"{mean:,.{digits}f}"
    return f"{mean:,.{digits}f} ± {half:,.{digits}f}"


# ---------------------------------------------------------------------------- the page of all


def read(name: str, records: Path) -> tuple[Finding, dict[str, Any]] | None:
    """A finding and the record that it is of; None where the script was not run."""
    path = records / f"{name}.json"
    if not path.exists():
        return None
    record = json.loads(path.read_text("utf-8"))
    finding: Finding = importlib.import_module(f"claim_{name}").finding(record["numbers"])
    return finding, record


def markdown(table: Table) -> str:
    """A table with its caption; the first column to the left, the others to the right."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in (table.columns, *table.rows)]
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    rule = f"|---|{'---:|' * (len(table.columns) - 1)}"
    return "\n".join([f"**{table.caption}**", "", head, rule, *body])


def section(number: int, finding: Finding, record: dict[str, Any]) -> str:
    """A claim as the page tells it: the first table in view, the others folded."""
    first, *others = map(markdown, finding.tables)
    folded = "\n\n".join(others)
    environment_ = record["environment"]
    parts = [
        f"## {number}. {finding.title}",
        f"*The claim.* {finding.claim}",
        *finding.reading,
        first,
        f"![{finding.title}](results/claims/{finding.name}.png)",
        f"<details><summary>More of the numbers</summary>\n\n{folded}\n\n</details>"
        if others
        else "",
        f"*How.* {finding.method}",
        f"*Limits.* {finding.limits}",
        f"`{record['command']}`: {record['minutes']:.0f} minutes, {record['machine']}, "
        f"{environment_['threads']} thread{'s' if environment_['threads'] > 1 else ''}, torch "
        f"{environment_['torch']}.",
    ]
    return "\n\n".join(part for part in parts if part)


def render(records: Path) -> str:
    """The page of all claims that have a record; of the others it says that they have none."""
    parts = [
        "# The paper's claims, measured",
        "Rendered by `scripts/claims.py` from the records in `results/claims`; no number here is "
        "typed. Each script writes its record, its picture and a page of its own. They are small "
        "on purpose, minutes on two idle cores: what they show is which way things go. The minutes "
        "told are of machines that had other work too.",
    ]
    for number, name in enumerate(CLAIMS, 1):
        found = read(name, records)
        if found is None:
            parts.append(f"## {number}. `python scripts/claim_{name}.py`\n\nNo record yet.")
        else:
            parts.append(section(number, *found))
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Renders, or checks."""
    parser = argparse.ArgumentParser(description="Render claims.md and its pictures.")
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    options = parser.parse_args()
    text = render(RECORDS)
    if options.check:
        old = PAGE.read_text("utf-8").splitlines() if PAGE.exists() else []
        changes = list(difflib.unified_diff(old, text.splitlines(), "claims.md", "rendered", n=0))
        print(*changes, sep="\n", end="\n" if changes else "")
        sys.exit(1 if changes else 0)
    with atomic_file(PAGE) as file:
        file.write_text(text, "utf-8")
    for name in CLAIMS:
        if (found := read(name, RECORDS)) is not None:
            with atomic_file(RECORDS / f"{name}.png") as file:
                file.write_bytes(drawn(found[0]))


if __name__ == "__main__":
    main()
