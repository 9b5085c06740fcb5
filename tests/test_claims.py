"""What the scripts of the paper's claims share."""

import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
from matplotlib.figure import Figure


@pytest.fixture(scope="module")
def claims(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("claims", repository / "scripts" / "claims.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["claims"] = module
    spec.loader.exec_module(module)
    return module


def test_intervals_are_students(claims: ModuleType) -> None:
    # scipy.stats.t.interval(0.95, 2, loc=2, scale=1 / sqrt(3)) is 2 ± 2.484.
    mean, half = claims.interval([1, 2, 3])
    assert mean == 2
    assert half == pytest.approx(2.484, abs=1e-3)
    assert claims.interval([5.0]) == (5.0, math.inf)
    assert claims.with_interval([1, 2, 3], 2) == "2.00 ± 2.48"
    assert claims.with_interval([1234.5]) == "1,234.5"


def test_a_finding_becomes_numbers_picture_and_page(
    claims: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = ["/some/where/claim_it.py", "--seeds", "2", "--output", "/else/where", "--quick"]
    monkeypatch.setattr(sys, "argv", arguments)
    figure = Figure()
    figure.subplots().plot([1, 2])
    finding = claims.Finding(
        name="it",
        title="One & two",
        claim="That <b>it</b> is so.",
        method="Counted.",
        reading=["It is so."],
        tables=[claims.Table("Counts", ["who", "n"], [["one", "1"], ["twenty", "20"]])],
        figure=figure,
        limits="None.",
        raw={"one": 1},
    )
    numbers, picture, page = claims.publish(finding, tmp_path / "new", 90)
    record = json.loads(numbers.read_text())
    assert record["numbers"] == {"one": 1}
    assert record["minutes"] == 1.5
    assert record["command"] == "python scripts/claim_it.py --seeds 2 --quick"
    assert picture.read_bytes().startswith(b"\x89PNG")
    text = page.read_text("utf-8")
    assert "That &lt;b&gt;it&lt;/b&gt; is so." in text
    assert "<td>twenty</td><td>20</td>" in text
    assert "https://" not in text
    assert "who      n\none      1\ntwenty  20\n" in capsys.readouterr().out
