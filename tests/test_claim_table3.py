"""The paper's Table 3 scaled down: rows change what they say, and are compared with their like."""

import importlib
import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="module")
def script(repository: Path) -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(repository / "scripts")
        return importlib.import_module("claim_table3")


def test_each_row_changes_what_the_paper_changes(script: ModuleType) -> None:
    base = script.scaled("base", 600)
    said = {row: script.difference(script.scaled(row, 600), base) for row in script.PAPER}
    assert said.pop("base") == ""
    assert said == {
        "A-h1": "h = 1, d_k = 64",
        "A-h4": "h = 4, d_k = 16",
        "A-h16": "h = 16, d_k = 4",
        "A-h32": "h = 32, d_k = 2",
        "B-dk16": "d_k = 2",
        "B-dk32": "d_k = 4",
        "C-N2": "N = 1",
        "C-N8": "N = 3",
        "C-d256": "d_k = 4, d = 32",
        "C-d1024": "d_k = 16, d = 128",
        "C-ff1024": "d_ff = 128",
        "C-ff4096": "d_ff = 512",
        "D-drop0.0": "dropout = 0.0",
        "D-drop0.2": "dropout = 0.2",
        "D-ls0.0": "smoothing = 0.0",
        "D-ls0.2": "smoothing = 0.2",
        "E": "positions = learned",
    }
    assert script.difference(base, base).startswith("h = 8, d_k = 8, N = 2, d = 64, d_ff = 256")


def run(row: str, seed: int, perplexity: float, bleu: float) -> dict[str, Any]:
    return {
        "row": row,
        "seed": seed,
        "changed": f"what {row} is",
        "parameters": 1000,
        "seconds": 1.0,
        "loss": math.log(perplexity),
        "perplexity": perplexity,
        "bleu": bleu,
    }


def test_a_row_is_compared_with_the_base_of_its_seed(script: ModuleType) -> None:
    # Seeds differ by far more than the rows do, and the rows always by about as much.
    raw = {
        "budget": {"updates": 5, "tokens": 6, "peak": 0.002},
        "rows": ["base", "C-N2", "E"],
        "runs": [
            *(run("base", seed, 2.0 + seed, 50.0 - 10 * seed) for seed in (1, 2, 3)),
            *(run("C-N2", seed, 3.0 + seed, 48.0 - 10 * seed + seed / 10) for seed in (1, 2, 3)),
            *(run("E", seed, 2.0 + seed - (-1) ** seed, 50.0 - 10 * seed) for seed in (1, 2, 3)),
        ],
    }
    assert script.against_base(raw, "C-N2", "perplexity") == [1, 1, 1]
    assert script.against_base(raw, "C-N2", "bleu") == pytest.approx([-1.9, -1.8, -1.7])
    found = script.finding(raw)
    rows = {row[0]: row for row in found.tables[0].rows}
    assert rows["base"][3:] == ["4.00 ± 2.48", "30.0 ± 24.8", "", ""]
    # Student's t with two degrees of freedom: 4.303 · 0.1 / √3.
    assert rows["C-N2"][5:] == ["-1.8 ± 0.2", "-2.1"]
    assert rows["E"][5:] == ["+0.0 ± 0.0", "-0.1"]
    assert "lower with none, higher with C-N2" in found.reading[0]
    assert "BLEU is higher with none, lower with C-N2" in found.reading[0]
    assert "In 2 of 2 rows" in found.reading[1]


def test_it_runs_and_heeds_the_time(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--quick", "--rows", "C-N2", "E", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["claim_table3.py", *arguments])
    monkeypatch.setattr(script, "greedy_bleu", lambda *_, **__: 12.0)
    script.main()
    numbers = json.loads((tmp_path / "table3.json").read_text())["numbers"]
    assert [one["row"] for one in numbers["runs"]] == ["base", "C-N2", "E"]
    base, shallow, learned = (one["parameters"] for one in numbers["runs"])
    assert shallow < base
    # A table of 128 positions of width 64 in either stack.
    assert learned - base == 2 * 128 * 64
    assert all(one["perplexity"] == pytest.approx(math.exp(one["loss"])) for one in numbers["runs"])

    # Any seed takes longer than no time at all.
    monkeypatch.setattr(
        script, "measure", lambda corpus, row, budget, seed, _: run(row, seed, 2, 2)
    )
    monkeypatch.setattr(script, "load_corpus", lambda *_: None)
    monkeypatch.setattr(
        sys, "argv", ["claim_table3.py", "--minutes", "0", "--output", str(tmp_path)]
    )
    script.main()
    numbers = json.loads((tmp_path / "table3.json").read_text())["numbers"]
    assert {one["seed"] for one in numbers["runs"]} == {1}
    assert len(numbers["runs"]) == len(script.PAPER)
