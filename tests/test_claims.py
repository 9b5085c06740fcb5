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

    claims.publish(finding, tmp_path / "new", 30, record)
    record = json.loads(numbers.read_text())
    command = "python scripts/claim_it.py --seeds 2 --quick"
    assert (record["command"], record["minutes"]) == (f"{command} && {command}", 2.0)


def test_tables_become_markdown(claims: ModuleType) -> None:
    table = claims.Table("Counts", ["who", "n", "m"], [["a|b", "1", "2"]])
    assert claims.markdown(table) == (
        "**Counts**\n\n| who | n | m |\n|---|---:|---:|\n| a\\|b | 1 | 2 |"
    )


def test_a_claim_without_a_record_says_so(claims: ModuleType, tmp_path: Path) -> None:
    text = claims.render(tmp_path)
    assert text.count("No record yet.") == len(claims.CLAIMS) == 6
    assert "`python scripts/claim_table3.py`" in text


def test_a_section_tells_all_and_folds_what_is_long(claims: ModuleType) -> None:
    tables = [claims.Table(name, ["x", "y"], [["one", "1"]]) for name in ("First", "Second")]
    finding = claims.Finding(
        "it", "A title", "That it is so.", "Counted.", ["It is so."], tables, Figure(), "None.", {}
    )
    record = {
        "command": "python scripts/claim_it.py --seeds 2",
        "minutes": 12.4,
        "machine": "AMD EPYC",
        "environment": {"threads": 1, "torch": "2.13.0"},
    }
    text = claims.section(3, finding, record)
    first, folded = text.split("<details>")
    assert "**First**" in first
    assert "**Second**" in folded
    for part in ("## 3. A title", "That it is so.", "It is so.", "(results/claims/it.png)"):
        assert part in first
    assert "`python scripts/claim_it.py --seeds 2`: 12 minutes, AMD EPYC, 1 thread, torch" in folded


def test_the_page_says_what_the_records_say(
    claims: ModuleType,
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(repository / "scripts")
    monkeypatch.setattr(sys, "argv", ["claims.py", "--check"])
    with pytest.raises(SystemExit) as stopped:
        claims.main()
    assert (stopped.value.code, capsys.readouterr().out) == (0, "")
    # A number that somebody typed is found, and rendering takes it away again.
    page = tmp_path / "claims.md"
    text = claims.PAGE.read_text("utf-8")
    assert "1,024" in text
    page.write_text(text.replace("1,024", "9,024"), "utf-8")
    monkeypatch.setattr(claims, "PAGE", page)
    with pytest.raises(SystemExit) as stopped:
        claims.main()
    assert stopped.value.code == 1
    assert "9,024" in capsys.readouterr().out


def test_rendering_writes_page_and_pictures(
    claims: ModuleType, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(repository / "scripts")
    (tmp_path / "length.json").write_bytes((claims.RECORDS / "length.json").read_bytes())
    monkeypatch.setattr(claims, "PAGE", tmp_path / "claims.md")
    monkeypatch.setattr(claims, "RECORDS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["claims.py"])
    claims.main()
    assert (tmp_path / "length.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "claims.md").read_text("utf-8")
    assert "What length costs" in text
    assert text.count("No record yet.") == 5


def test_pictures_and_records_are_small_and_together(claims: ModuleType) -> None:
    files = sorted(claims.RECORDS.iterdir())
    assert all(file.stat().st_size < 200_000 for file in files)
    assert {file.stem for file in files if file.suffix == ".json"} == {
        file.stem for file in files if file.suffix == ".png"
    }
    assert {file.stem for file in files} <= set(claims.CLAIMS)
