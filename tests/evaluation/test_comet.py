"""COMET behind Evaluate's interface; its own package is played by a stand-in.

The package asks for transformers below 5 and its models are not in the project, so that what is
tested is all but the judgement itself.
"""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from vanilla_transformer.evaluation import load_metric

SEGMENTS: dict[str, Any] = {
    "sources": ["Ein Hund schläft.", "Ja."],
    "predictions": ["A dog sleeps.", "Yes."],
    "references": ["The dog is asleep.", ["Yes!"]],
}


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A package `comet` that notes what it is asked and finds every segment half good."""
    asked: list[Any] = []

    class Judge:
        def predict(self, segments: list[dict[str, str]], **limits: Any) -> Any:
            asked.append((segments, limits))
            return SimpleNamespace(scores=[0.5] * len(segments), system_score=0.5)

    package: Any = ModuleType("comet")
    package.download_model = lambda name: f"/downloaded/{name}"
    package.load_from_checkpoint = lambda path: asked.append(path) or Judge()
    monkeypatch.setitem(sys.modules, "comet", package)
    own = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata,
        "version",
        lambda name: "2.2.7" if name == "unbabel-comet" else own(name),
    )
    return asked


def test_hands_segments_over_and_gives_the_judgement_back(stand_in: list[Any]) -> None:
    metric = load_metric("comet")
    metric.add(
        prediction=SEGMENTS["predictions"][0],
        reference=SEGMENTS["references"][0],
        sources=SEGMENTS["sources"][0],
    )
    rest = {name: column[1:] for name, column in SEGMENTS.items()}
    result = metric.compute(**rest, model="one/model", batch_size=3)
    assert stand_in == [
        "/downloaded/one/model",
        (
            [
                {"src": "Ein Hund schläft.", "mt": "A dog sleeps.", "ref": "The dog is asleep."},
                {"src": "Ja.", "mt": "Yes.", "ref": "Yes!"},
            ],
            {"batch_size": 3, "gpus": 0},
        ),
    ]
    assert result == {
        "score": 50.0,
        "signature": "model:model|unbabel-comet:2.2.7",
        "scores": [0.5, 0.5],
    }


def test_a_local_checkpoint_is_taken_as_it_is(stand_in: list[Any], tmp_path: Path) -> None:
    file = tmp_path / "own.ckpt"
    with pytest.raises(ValueError, match=r"own\.ckpt\) is not there"):
        load_metric("comet").compute(**SEGMENTS, model=str(file))
    file.touch()
    load_metric("comet").compute(**SEGMENTS, model=str(file))
    assert stand_in[0] == str(file)


@pytest.mark.usefixtures("stand_in")
def test_bad_segments_are_named() -> None:
    metric = load_metric("comet")
    for change, message in (
        ({"sources": None}, "give sources"),
        ({"sources": ["a"]}, "1 predictions and 2 references"),
        ({"references": [["a", "b"], ["c"]]}, "one reference per segment"),
        ({"predictions": [1, "b"]}, "prediction 0 must be a string"),
    ):
        with pytest.raises(ValueError, match=message):
            metric.compute(**{**SEGMENTS, **change})
    with pytest.raises(ValueError, match="at least one segment"):
        metric.compute()


def test_without_the_package_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "comet", None)
    metric = load_metric("comet")
    with pytest.raises(ValueError, match="pip install unbabel-comet"):
        metric.compute(**SEGMENTS)
    assert len(metric) == 0
