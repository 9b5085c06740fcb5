"""The metrics are sacreBLEU's figures behind Evaluate's interface, and load without a network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sacrebleu

import vanilla_transformer.evaluation
from vanilla_transformer.evaluation import load_metric, score_translations

SCRIPTS = Path(vanilla_transformer.evaluation.__file__).parent
PREDICTIONS = [
    "A dog runs on the green grass.",
    'He said: "two (2) men, 3.5 metres apart"',
    "Ein Mädchen springt über den Zaun",
    "the THE the",
    "",
]
REFERENCES = [
    "A dog is running across the green grass.",
    'He says: "two (2) men 3.5 metres apart".',
    "Das Mädchen springt über einen Zaun.",
    "the cat",
    "not empty",
]
# What a metric script must be able to do where no connection can be opened and where this
# package cannot be imported: be loaded, combined, filled bit by bit, and its result saved.
OFFLINE = """
import json, socket, sys

def refuse(*args, **kwargs):
    raise AssertionError(f"the network was asked for: {args}")

socket.socket.connect = socket.getaddrinfo = refuse
sys.modules["vanilla_transformer"] = None
import evaluate

scripts, output, segments = sys.argv[1:]
predictions, references = json.loads(segments)
names = ("bleu", "chrf", "ter")
combined = evaluate.combine([evaluate.load(f"{scripts}/{name}.py") for name in names])
combined.add(prediction=predictions[0], reference=references[0])
combined.add_batch(predictions=predictions[1:], references=references[1:])
evaluate.save(output, **combined.compute())
"""


def test_loads_combines_adds_and_saves_without_network_or_package(tmp_path: Path) -> None:
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_EVALUATE_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "home"),
    }
    segments = json.dumps([PREDICTIONS, REFERENCES])
    output = tmp_path / "result.json"
    subprocess.run(
        [sys.executable, "-c", OFFLINE, str(SCRIPTS), str(output), segments],
        check=True,
        env=environment,
        cwd=tmp_path,
        timeout=120,
    )
    saved = json.loads(output.read_text())
    expected = score_translations(PREDICTIONS, REFERENCES)
    for name, result in expected.items():
        assert saved[f"{name}_score"] == result["score"]
        assert saved[f"{name}_signature"] == result["signature"]
    assert saved["sys_len"] == expected["bleu"]["sys_len"]


@pytest.mark.parametrize("lowercase", [False, True])
def test_equals_sacrebleu_command_line(tmp_path: Path, lowercase: bool) -> None:
    (tmp_path / "hypotheses").write_text("\n".join(PREDICTIONS) + "\n", encoding="utf-8")
    (tmp_path / "references").write_text("\n".join(REFERENCES) + "\n", encoding="utf-8")
    tokenize = "none" if lowercase else "13a"
    command = "references -i hypotheses --metrics bleu chrf ter --format json --width 12"
    options = ["--tokenize", tokenize, *(["--lowercase", "--chrf-lowercase"] if lowercase else [])]
    finished = subprocess.run(
        [sys.executable, "-m", "sacrebleu", *command.split(), *options],
        check=True,
        capture_output=True,
        cwd=tmp_path,
        timeout=120,
        env=os.environ | {"PYTHONIOENCODING": "utf-8", "PYTHONUTF8": "1"},
    )
    ours = score_translations(PREDICTIONS, REFERENCES, lowercase=lowercase, tokenize=tokenize)
    theirs = json.loads(finished.stdout)
    assert [entry["name"] for entry in theirs] == ["BLEU", "chrF2", "TER"]
    for entry, result in zip(theirs, ours.values(), strict=True):
        assert result["score"] == pytest.approx(entry["score"], abs=1e-11)
        assert result["signature"] == entry["signature"]
        assert 0 < result["score"] < 100


@pytest.mark.parametrize(
    ("name", "scorer", "options"),
    [
        ("bleu", sacrebleu.BLEU, {"tokenize": "char", "smooth_method": "add-k", "smooth_value": 2}),
        ("bleu", sacrebleu.BLEU, {"max_ngram_order": 2, "effective_order": True}),
        ("chrf", sacrebleu.CHRF, {"word_order": 2, "whitespace": True}),
        ("chrf", sacrebleu.CHRF, {"char_order": 4, "beta": 1, "eps_smoothing": True}),
        ("ter", sacrebleu.TER, {"case_sensitive": True, "normalized": True, "no_punct": True}),
    ],
)
def test_options_reach_sacrebleu(name: str, scorer: Any, options: dict[str, Any]) -> None:
    direct = scorer(**options)
    expected = direct.corpus_score(PREDICTIONS, [REFERENCES])
    arguments: dict[str, Any] = {"predictions": PREDICTIONS, "references": REFERENCES}
    for result in (
        load_metric(name).compute(**arguments, **options),
        load_metric(name, **options).compute(**arguments),
    ):
        assert result["score"] == expected.score
        assert result["signature"] == str(direct.get_signature())
    assert load_metric(name).compute(**arguments)["score"] != expected.score


def test_options_of_one_compute_go_before_the_defaults_and_do_not_stay() -> None:
    metric = load_metric("bleu", lowercase=True)
    arguments: dict[str, Any] = {"predictions": ["A B C D"], "references": ["a b c d"]}
    assert metric.compute(**arguments)["score"] == pytest.approx(100)
    assert metric.compute(**arguments, lowercase=False)["score"] == 0
    assert metric.compute(**arguments)["score"] == pytest.approx(100)


def test_bleu_parts_by_hand() -> None:
    result = load_metric("bleu", tokenize="none").compute(
        predictions=["the cat sat on mat"], references=["the cat sat on the mat"]
    )
    # "the cat sat on" matches whole; "on mat" and what contains it does not.
    assert result["counts"] == [5, 3, 2, 1]
    assert result["totals"] == [5, 4, 3, 2]
    assert (result["sys_len"], result["ref_len"]) == (5, 6)
    assert result["bp"] == pytest.approx(2.718281828459045 ** (1 - 6 / 5))
    precisions = [100, 75, 200 / 3, 50]
    assert result["precisions"] == pytest.approx(precisions)
    mean = (precisions[0] * precisions[1] * precisions[2] * precisions[3]) ** 0.25
    assert result["score"] == pytest.approx(result["bp"] * mean)


def test_ter_parts_by_hand() -> None:
    # One word shifted and one replaced, against a reference of five words.
    result = load_metric("ter").compute(predictions=["e a b c x"], references=["a b c d e"])
    assert (result["num_edits"], result["ref_length"]) == (2, 5.0)
    assert result["score"] == pytest.approx(40)


@pytest.mark.parametrize("name", ["bleu", "chrf", "ter"])
def test_several_references_even_unequally_many(name: str) -> None:
    references = [[REFERENCES[0], PREDICTIONS[0]], *([text] for text in REFERENCES[1:])]
    several = load_metric(name).compute(predictions=PREDICTIONS, references=references)
    streams = [REFERENCES, [PREDICTIONS[0], None, None, None, None]]
    scorer = {"bleu": sacrebleu.BLEU, "chrf": sacrebleu.CHRF, "ter": sacrebleu.TER}[name]()
    assert several["score"] == scorer.corpus_score(PREDICTIONS, streams).score
    assert several["signature"] == str(scorer.get_signature())
    assert "nrefs:var" in several["signature"]


def test_bit_by_bit_equals_at_once_and_starts_afresh() -> None:
    metric = load_metric("bleu")
    at_once = metric.compute(predictions=PREDICTIONS, references=REFERENCES)
    for _ in range(2):
        metric.add(prediction=PREDICTIONS[0], reference=REFERENCES[0])
        metric.add_batch(predictions=[], references=[])
        metric.add_batch(
            predictions=PREDICTIONS[1:3], references=[[text] for text in REFERENCES[1:3]]
        )
        assert len(metric) == 3
        assert metric.compute(predictions=PREDICTIONS[3:], references=REFERENCES[3:]) == at_once


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "at least one segment"),
        ({"predictions": [], "references": []}, "at least one segment"),
        ({"predictions": ["a"], "references": ["a", "b"]}, "1 predictions and 2 references"),
        ({"predictions": ["a"], "references": []}, "1 predictions and 0 references"),
        ({"predictions": ["a"]}, "references must be a list"),
        ({"predictions": "a", "references": "a"}, "predictions must be a list"),
        ({"predictions": ["a", 3], "references": ["a", "b"]}, "prediction 1 must be a string"),
        ({"predictions": ["a"], "references": [None]}, "reference 0 must be a string or a list"),
        ({"predictions": ["a"], "references": [[]]}, "reference 0 must be a string or a list"),
        ({"predictions": ["a"], "references": ["a"], "tokenise": "13a"}, "did you mean tokenize"),
        ({"predictions": ["a"], "references": ["a"], "tokenize": "14a"}, "must be one of .*13a"),
        ({"predictions": ["a"], "references": ["a"], "smooth_method": "x"}, "must be one of"),
    ],
)
def test_bad_input_is_named_and_leaves_the_metric_usable(
    arguments: dict[str, Any], message: str
) -> None:
    metric = load_metric("bleu")
    with pytest.raises(ValueError, match=message):
        metric.compute(**arguments)
    assert len(metric) == 0
    result = metric.compute(predictions=["a b c d"], references=["a b c d"])
    assert result["score"] == pytest.approx(100)


def test_bad_names_are_refused_when_loading() -> None:
    with pytest.raises(ValueError, match=r"'bleurt'.*bleu, chrf, ter, squad"):
        load_metric("bleurt")
    with pytest.raises(ValueError, match="Chrf has no option 'tokenize'"):
        load_metric("chrf", tokenize="none")
    # Evaluate itself would drop it in silence.
    with pytest.raises(ValueError, match="squad has no option 'version'"):
        load_metric("squad", version="2.0")


def test_squad_is_loaded_by_name_and_is_no_metric_of_translations() -> None:
    answers = {"text": ["black cat", "cat"], "answer_start": [0, 6]}
    result = load_metric("squad").compute(
        predictions=[{"id": "1", "prediction_text": "a big cat"}],
        references=[{"id": "1", "answers": answers}],
    )
    # "big cat" against "cat": half of its words, all of the answer's.
    assert (result["exact_match"], result["precision"], result["recall"]) == (0, 50, 100)
    assert result["f1"] == pytest.approx(200 / 3)
    assert list(score_translations(["a"], ["a"])) == ["bleu", "chrf", "ter"]


def test_multi30k_protocol_is_not_retokenised() -> None:
    # 13a would split "a,b" into three tokens; "none" leaves it alone.
    result = score_translations(["a,b c d e"], ["a,b c d e"], lowercase=True, tokenize="none")
    assert result["bleu"]["sys_len"] == 4
    assert "case:lc" in result["bleu"]["signature"]
    assert "tok:none" in result["bleu"]["signature"]
    assert "case:lc" in result["chrf"]["signature"]
