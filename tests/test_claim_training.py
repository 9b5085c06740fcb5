"""Why √d_k, warm-up and the place of the norm: what is measured is what is said."""

import importlib
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch


@pytest.fixture
def script(repository: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(repository / "scripts")
    return importlib.import_module("claim_training")


def test_saturation_is_that_of_a_softmax_of_normal_products(script: ModuleType) -> None:
    plain, scaled = (script.saturation(256, scaled=scaled) for scaled in (False, True))
    # Footnote 4: a product of two such vectors has a variance of d_k.
    assert plain["variance"] == pytest.approx(256, rel=0.05)
    assert scaled["variance"] == pytest.approx(1, rel=0.05)
    assert plain["largest"] > 0.8 > 0.2 > scaled["largest"]
    assert plain["gradient"] < scaled["gradient"]
    # The Jacobian by finite differences, of scores of the same variance.
    draw = np.random.default_rng(0)
    norms, entropies = [], []
    for _ in range(300):
        scores = draw.normal(size=64)
        p = np.exp(scores) / np.exp(scores).sum()
        moved = np.exp(scores + 1e-6 * np.eye(64))
        jacobian = (moved / moved.sum(-1, keepdims=True) - p) / 1e-6
        norms.append(np.sqrt((jacobian**2).sum()))
        entropies.append(-(p * np.log(p)).sum())
    assert scaled["gradient"] == pytest.approx(np.mean(norms), rel=0.03)
    assert scaled["entropy"] == pytest.approx(np.mean(entropies), rel=0.03)


def test_the_schedule_and_its_lack(script: ModuleType) -> None:
    with_it, without = script.schedule(1e-3, 100), script.schedule(1e-3, 1)
    assert [with_it(1), with_it(50), with_it(100)] == pytest.approx([1e-5, 5e-4, 1e-3])
    assert [without(1), without(100)] == pytest.approx([1e-3, 1e-3])
    assert with_it(400) == without(400) == pytest.approx(5e-4)


def test_unscaled_attention_is_without_the_root(script: ModuleType) -> None:
    options = {"layers": 1, "d_model": 16, "seed": 1}
    scaled, plain = (script.build(20, "post", scaled=one, **options) for one in (True, False))
    ids = torch.tensor([[5, 6, 7]])
    assert not torch.equal(
        scaled.eval()(ids, labels=ids).logits, plain.eval()(ids, labels=ids).logits
    )
    # Queries that are √d_k times as large bring the same: nothing else is different.
    with torch.no_grad():
        for name, weight in scaled.named_parameters():
            if "q_proj" in name:
                weight *= math.sqrt(16)
    torch.testing.assert_close(
        scaled(ids, labels=ids).logits, plain(ids, labels=ids).logits, atol=1e-5, rtol=1e-5
    )


def test_it_runs(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["claim_training.py", "--quick", "--output", str(tmp_path)])
    script.main()
    numbers = json.loads((tmp_path / "training.json").read_text())["numbers"]
    assert {run["setting"] for run in numbers["runs"]} == set(script.SETTINGS)
    assert all(len(run["losses"]) == 3 for run in numbers["runs"])
    assert [len(stack) for stack in numbers["gradients"]["post"].values()] == [2, 2]
    assert "3 updates" in (tmp_path / "training.html").read_text("utf-8")
