"""The demo as `make demo` runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(700)
def test_demo(repository: Path, tmp_path: Path) -> None:
    output = tmp_path / "demo"
    done = subprocess.run(
        [sys.executable, str(repository / "scripts" / "demo.py"), "--output", str(output)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(repository)},
        cwd=tmp_path,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    bleu = json.loads((output / "results.json").read_text(encoding="utf-8"))["tests"]["test"][
        "bleu"
    ]
    assert bleu["score"] >= 95
    assert f"BLEU {bleu['score']:.2f}" in done.stdout
    assert (output / "training.png").read_bytes().startswith(b"\x89PNG")
    page = (output / "attention.html").read_text(encoding="utf-8")
    assert page.lstrip().lower().startswith("<!doctype html>")
    # Self-contained: nothing is fetched.
    assert "http://" not in page.replace("http://www.w3.org/", "")
    assert "https://" not in page
