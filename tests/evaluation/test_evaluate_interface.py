"""Evaluate's own functions on the metrics: load by path, combine, add, save; offline and alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import evaluate
import pytest

import vanilla_transformer.evaluation
from vanilla_transformer.evaluation import METRICS, load_metric

SCRIPTS = Path(vanilla_transformer.evaluation.__file__).parent
TEXTS: dict[str, Any] = {
    "predictions": ["a dog runs", "the cats sleep here"],
    "references": ["the dog runs", "the cat is sleeping here"],
}
LABELS: dict[str, Any] = {"predictions": [0, 2, 1], "references": [0, 1, 1]}
ANSWERS: dict[str, Any] = {
    "predictions": [{"id": "1", "prediction_text": "a cat"}],
    "references": [{"id": "1", "answers": {"text": ["cat"], "answer_start": [2]}}],
}
# In a process where no connection can be opened and this package cannot be imported.
OFFLINE = """
import json, socket, sys

def refuse(*args, **kwargs):
    raise AssertionError(f"the network was asked for: {args}")

socket.socket.connect = socket.getaddrinfo = refuse
sys.modules["vanilla_transformer"] = sys.modules["comet"] = None
import evaluate

scripts, output, given = sys.argv[1:]
cases = json.loads(given)
results = {}
for name, columns in cases.items():
    metric = evaluate.load(f"{scripts}/{name}.py")
    for prediction, reference in zip(columns["predictions"], columns["references"]):
        metric.add(prediction=prediction, reference=reference)
    results[name] = metric.compute()
try:
    evaluate.load(f"{scripts}/comet.py").compute(sources=["a"], predictions=["a"], references=["a"])
except ValueError as error:
    results["comet"] = str(error)
evaluate.save(output, **results)
"""


def cases() -> dict[str, dict[str, Any]]:
    found = {"classification": LABELS, "squad": ANSWERS}
    # The others need sacreBLEU alone, which is there.
    return found | ({"meteor": TEXTS} if find_spec("nltk") else {})


def test_load_add_and_save_without_network_or_package(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_EVALUATE_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "home"),
    }
    subprocess.run(
        [sys.executable, "-c", OFFLINE, str(SCRIPTS), str(output), json.dumps(cases())],
        check=True,
        env=environment,
        cwd=tmp_path,
        timeout=120,
    )
    saved = json.loads(output.read_text())
    for name, columns in cases().items():
        assert saved[name] == load_metric(name).compute(**columns)
    assert "pip install unbabel-comet" in saved["comet"]


def test_metrics_of_text_combine(tmp_path: Path) -> None:
    names = ["bleu", "chrf", "ter", *(["meteor"] if "meteor" in cases() else [])]
    parts = [load_metric(name) for name in names]
    plus = load_metric("chrf", word_order=2)
    combined = evaluate.combine([*parts, plus], force_prefix=True)
    combined.add(prediction=TEXTS["predictions"][0], reference=TEXTS["references"][0])
    combined.add_batch(predictions=TEXTS["predictions"][1:], references=TEXTS["references"][1:])
    found = combined.compute()
    evaluate.save(tmp_path / "all.json", **found)
    saved = json.loads((tmp_path / "all.json").read_text())
    for name in {*names} - {"chrf"}:
        assert saved[f"{name}_score"] == load_metric(name).compute(**TEXTS)["score"]
    # chrF and chrF++ are one metric with two options, which Evaluate numbers.
    for number, options in enumerate(({}, {"word_order": 2})):
        expected = load_metric("chrf", **options).compute(**TEXTS)
        assert saved[f"chrf_{number}_score"] == expected["score"]
        assert f"nw:{options.get('word_order', 0)}" in saved[f"chrf_{number}_signature"]
    assert saved["chrf_0_score"] != saved["chrf_1_score"]


def test_metrics_of_labels_and_of_answers_combine_too() -> None:
    for name, columns in (("classification", LABELS), ("squad", ANSWERS)):
        combined = evaluate.combine([load_metric(name), load_metric(name)])
        for prediction, reference in zip(*columns.values(), strict=True):
            combined.add(prediction=prediction, reference=reference)
        expected = load_metric(name).compute(**columns)
        found = combined.compute()
        assert {key: found[f"{name}_1_{key}"] for key in expected} == expected


def test_every_metric_is_loaded_by_name_and_has_its_description() -> None:
    for name in METRICS:
        metric = load_metric(name)
        assert metric.name == name
        assert metric.description
        assert "Args:" in metric.inputs_description
        assert metric.citation
    for name in ("classification", "comet"):
        with pytest.raises(ValueError, match=f"{name} has no option 'beta'"):
            load_metric(name, beta=1)
