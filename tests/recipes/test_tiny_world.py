"""The recipes of the embedded sets learn them, as the README says."""

import time
from pathlib import Path

import pytest

from vanilla_transformer.recipes import execute, find_recipe


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    ("name", "score"), [("tiny-world-questions", "f1"), ("tiny-world-inference", "accuracy")]
)
def test_unseen_combinations_are_learned(name: str, score: str, tmp_path: Path) -> None:
    started = time.monotonic()
    results = execute(find_recipe(name), tmp_path / "run")
    print(f"{name}: {results['tests']['test'][score]:.2f} in {time.monotonic() - started:.0f} s")
    assert results["tests"]["test"][score] >= 95
    if name == "tiny-world-inference":
        # Each of the hard cases, not only their mean.
        for figures in results["tests"]["test"]["slices"]["phenomena"].values():
            assert figures["accuracy"] >= 90
