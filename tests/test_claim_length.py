"""What length costs: the pieces that are timed compute what they are called."""

import importlib
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch


@pytest.fixture
def script(repository: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(repository / "scripts")
    return importlib.import_module("claim_length")


def test_attention_alone_is_its_formula(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    randn = torch.randn

    def remembered(*size: int, **options: bool) -> torch.Tensor:
        drawn.append(randn(*size, **options))
        return drawn[-1]

    monkeypatch.setattr(script.torch, "randn", remembered)
    for kind in script.KINDS:
        script.attention(5, 16, kind)()
        states = drawn[-1]
        x = states.detach().double().requires_grad_()
        heads = x[0].view(5, script.HEADS, 2).transpose(0, 1)
        weights = torch.softmax(heads @ heads.transpose(1, 2) / math.sqrt(2), dim=-1)
        (weights @ heads).sum().backward()
        assert states.grad is not None
        torch.testing.assert_close(states.grad.double(), x.grad, atol=1e-5, rtol=1e-4)


def test_slopes_and_crossings(script: ModuleType) -> None:
    lengths = [2**i for i in range(6, 12)]
    assert script.slope(lengths, [n**2 / 7 for n in lengths]) == pytest.approx(2)
    squares = [n * n for n in lengths]
    assert script.crossing(lengths, squares, [300 * n for n in lengths]) == pytest.approx(300)
    assert script.crossing(lengths, squares, lengths) == 64
    assert script.crossing(lengths, lengths, squares) is None


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is Linux's")
def test_it_runs(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["claim_length.py", "--quick", "--longest", "128", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    script.main()
    rows = json.loads((tmp_path / "length.json").read_text())["numbers"]["rows"]
    assert [row["length"] for row in rows] == [64, 128]
    assert "What length costs" in (tmp_path / "length.html").read_text("utf-8")
