"""All metrics of several systems: each figure is the metric's own, each p-value its test's."""

from __future__ import annotations

import json
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vanilla_transformer.evaluation import load_metric
from vanilla_transformer.evaluation.bleu_table import bleu_table
from vanilla_transformer.evaluation.scoring import format_scores, score_systems
from vanilla_transformer.evaluation.significance import compare_examples, compare_systems

GENERATOR = np.random.default_rng(5)
REFERENCES = [
    " ".join(GENERATOR.choice(["the", "Well-known", "dog", "cat", "runs", "now", "."], size=7))
    for _ in range(30)
]
SYSTEMS = {
    name: [
        " ".join("x" if GENERATOR.random() < share else word for word in line.split())
        for line in REFERENCES
    ]
    for name, share in (("base", 0.3), ("better", 0.1))
}


def test_every_figure_is_that_of_its_metric() -> None:
    metrics = ("bleu", "chrf", "chrf++", "ter")
    result = score_systems(SYSTEMS, REFERENCES, metrics=metrics, num_samples=20)
    assert result["segments"] == 30
    loaded: dict[str, Any] = {"chrF": ("chrf", {}), "chrF++": ("chrf", {"word_order": 2})}
    loaded["TER"] = ("ter", {})
    for name, lines in SYSTEMS.items():
        expected = {
            f"BLEU {convention}": row for convention, row in bleu_table(lines, REFERENCES).items()
        }
        for title, (metric, options) in loaded.items():
            found = load_metric(metric, **options).compute(predictions=lines, references=REFERENCES)
            assert found is not None
            expected[title] = {key: found[key] for key in ("score", "signature")}
        assert result["systems"][name] == expected
    assert [one["test"] for one in result["comparisons"]] == ["bootstrap", "randomisation"]
    for one in result["comparisons"]:
        assert list(one["metrics"]) == list(metrics)
        expected = compare_systems(
            SYSTEMS,
            REFERENCES,
            test=one["test"],
            metrics={"chrf": {"word_order": 2}},
            num_samples=20,
        )
        assert one["metrics"]["chrf++"] == expected["metrics"]["chrf"]
        assert {key: one[key] for key in one if key != "metrics"} == {
            key: expected[key] for key in expected if key != "metrics"
        }
    assert json.loads(json.dumps(result)) == result


def test_one_system_has_intervals_and_no_p() -> None:
    result = score_systems(
        {"base": SYSTEMS["base"]}, REFERENCES, metrics=("bleu", "bleu"), num_samples=20
    )
    (only,) = result["comparisons"]
    assert (only["test"], list(only["metrics"]["bleu"]["systems"])) == ("bootstrap", ["base"])
    assert "p_value" not in only["metrics"]["bleu"]["systems"]["base"]


def test_the_table_has_a_line_a_system_and_all_signatures() -> None:
    result = score_systems(SYSTEMS, REFERENCES, num_samples=20)
    lines = format_scores(result).splitlines()
    heads = [
        " ".join(words) for words in zip(lines[0].split(), ["lower-cased", "split"], strict=True)
    ]
    assert heads == ["13a lower-cased", "compounds split"]
    assert lines[1].split() == ["13a", "intl", "lower-cased", "split", "chrF", "TER"]
    for line, (name, row) in zip(lines[2:4], result["systems"].items(), strict=True):
        assert line.split() == [name, *(f"{one['score']:.2f}" for one in row.values())]
    assert lines[5:11] == [
        f"{column}: {one['signature']}" for column, one in result["systems"]["base"].items()
    ]
    assert lines[12].startswith("30 segments, paired bootstrap, 20 samples")
    assert all(len(line) <= 100 for line in lines)


def test_means_over_segments_are_compared_by_segment(monkeypatch: pytest.MonkeyPatch) -> None:
    """COMET, of which a stand-in judges by length."""
    asked: list[str] = []

    class Judge:
        def predict(self, segments: list[dict[str, str]], **limits: Any) -> Any:
            scores = [len(one["mt"]) / (len(one["src"]) + len(one["ref"])) for one in segments]
            return SimpleNamespace(scores=scores, system_score=float(np.mean(scores)))

    comet = ModuleType("comet")
    comet.download_model = lambda name: asked.append(name) or name  # type: ignore[attr-defined]
    comet.load_from_checkpoint = lambda name: Judge()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "comet", comet)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.2.7")
    sources = ["a" * number for number in range(1, 31)]
    result = score_systems(
        SYSTEMS, REFERENCES, metrics=["comet"], sources=sources, comet_model="one", num_samples=50
    )
    # Loaded once for both.
    assert asked == ["one"]
    each = {
        name: 100
        * np.array(
            [
                len(line) / (len(source) + len(reference))
                for line, source, reference in zip(lines, sources, REFERENCES, strict=True)
            ]
        )
        for name, lines in SYSTEMS.items()
    }
    for name, scores in each.items():
        assert result["systems"][name]["COMET"]["score"] == pytest.approx(scores.mean())
    for one in result["comparisons"]:
        rows = one["metrics"]["comet"]["systems"]
        expected = compare_examples(each["base"], each["better"], test=one["test"], num_samples=50)
        assert rows["better"]["p_value"] == pytest.approx(expected["p_value"])
        assert rows["better"]["difference"] == pytest.approx(
            each["better"].mean() - each["base"].mean()
        )
        assert "p_value" not in rows["base"]
        low, high = rows["base"]["interval"]
        # By the normal approximation, which for thirty segments is near.
        error = 1.96 * each["base"].std() / 30**0.5
        assert [low, high] == pytest.approx(
            [each["base"].mean() - error, each["base"].mean() + error], abs=0.2 * error
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ("bleurt",)}, r"'bleurt'.*bleu, chrf, chrf\+\+, ter, meteor, comet"),
        ({"metrics": ()}, "nothing to score"),
        ({"systems": {}}, "nothing to score"),
        ({"metrics": ("comet",)}, "COMET reads the source too"),
        ({"systems": {"mine": ["a"]}}, "mine: there are 1 predictions and 30 references"),
    ],
)
def test_bad_input_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score_systems(**{"systems": SYSTEMS, "references": REFERENCES, **options})
