"""METEOR: figures by hand, with and without synonyms, and it says which."""

from __future__ import annotations

import builtins
import logging
from pathlib import Path
from typing import Any

import pytest

from vanilla_transformer.evaluation import load_metric

NEEDS_NLTK = "NLTK is not installed (extra meteor)"
PREDICTION, REFERENCE = "The auto was quick.", "The car was fast."
# In the format of WordNet's database files (wndb(5)): two synsets, one of them with two words.
NOUNS = {"auto": 0, "car": 0, "train": 1}
SYNSETS = (["car", "auto"], ["train"])


@pytest.fixture
def wordnet(tmp_path: Path) -> Path:
    """A WordNet of three nouns, as Debian packs it: without the file lexnames."""
    folder = tmp_path / "wordnet"
    folder.mkdir()
    head = "  1 WordNet 3.0 Copyright 2006 by Princeton University.  All rights reserved.  \n"
    offsets, data = [], head
    for words in SYNSETS:
        offsets.append(len(data))
        listed = " ".join(f"{word} 0" for word in words)
        data += f"{offsets[-1]:08d} 06 n {len(words):02x} {listed} 000 | a vehicle  \n"
    index = head + "".join(
        f"{word} n 1 0 1 0 {offsets[number]:08d}  \n" for word, number in sorted(NOUNS.items())
    )
    for part in ("noun", "verb", "adj", "adv"):
        (folder / f"data.{part}").write_text(data if part == "noun" else head)
        (folder / f"index.{part}").write_text(index if part == "noun" else head)
        (folder / f"{part}.exc").write_text("")
    (folder / "cntlist.rev").write_text("")
    return folder


def test_by_hand_without_and_with_synonyms(wordnet: Path) -> None:
    pytest.importorskip("nltk", reason=NEEDS_NLTK)
    metric = load_metric("meteor", wordnet="none")
    arguments: dict[str, Any] = {"predictions": [PREDICTION], "references": [REFERENCE]}
    # "the", "was" and "." of five tokens, in three pieces: 3/5 times 1 - 0.5.
    without = metric.compute(**arguments)
    assert without["score"] == pytest.approx(30)
    assert without["wordnet"] is None
    assert "|wordnet:none|" in without["signature"]
    # An auto is a car: four of five, in two pieces: 4/5 times 1 - 0.5 * (2/4)^3.
    result = metric.compute(**arguments, wordnet=str(wordnet))
    assert result["score"] == pytest.approx(75)
    assert result["wordnet"] == "3.0"
    assert "|wordnet:3.0|" in result["signature"]
    # Options of one `compute` do not stay.
    assert metric.compute(**arguments) == without


def test_mean_over_sentences_each_by_its_best_reference() -> None:
    score = pytest.importorskip("nltk.translate.meteor_score", reason=NEEDS_NLTK)
    tokens = pytest.importorskip("nltk.tokenize").NLTKWordTokenizer().tokenize
    predictions = ["A dog isn't running.", "two birds", ""]
    references = [["The dog is not running.", "A dog isn't running!"], ["two bird"], ["nothing"]]

    class Empty:
        def synsets(self, word: str) -> list[Any]:
            return []

    expected = [
        max(
            score.single_meteor_score(tokens(one), tokens(p), wordnet=Empty())
            for one in alternatives
        )
        for p, alternatives in zip(predictions, references, strict=True)
    ]
    metric = load_metric("meteor", wordnet="none")
    metric.add(prediction=predictions[0], reference=references[0])
    result = metric.compute(predictions=predictions[1:], references=references[1:])
    assert result["score"] == pytest.approx(100 * sum(expected) / 3)
    # "birds" and "bird" have one stem.
    assert expected[1] > 0.9


def test_without_wordnet_it_says_so_and_downloads_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    nltk = pytest.importorskip("nltk", reason=NEEDS_NLTK)
    metric = load_metric("meteor")
    # The module that Evaluate made of the script, not the one of this package.
    module = type(metric).scorer.corpus_score.__globals__
    monkeypatch.setitem(module, "SYSTEM_WORDNET", tmp_path)
    monkeypatch.setattr(nltk.data, "path", [])

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a download")

    monkeypatch.setattr(nltk, "download", refuse)
    monkeypatch.setattr(nltk.downloader.Downloader, "download", refuse)
    with caplog.at_level(logging.WARNING):
        result = metric.compute(predictions=[PREDICTION], references=[REFERENCE])
    assert result["wordnet"] is None
    assert "WordNet is not there" in caplog.text
    assert "apt install wordnet-base" in caplog.text


def test_finds_the_systems_wordnet(monkeypatch: pytest.MonkeyPatch, wordnet: Path) -> None:
    nltk = pytest.importorskip("nltk", reason=NEEDS_NLTK)
    metric = load_metric("meteor")
    module = type(metric).scorer.corpus_score.__globals__
    monkeypatch.setattr(nltk.data, "path", [])
    monkeypatch.setitem(module, "SYSTEM_WORDNET", wordnet)
    result = metric.compute(predictions=[PREDICTION], references=[REFERENCE])
    assert (result["wordnet"], result["score"]) == ("3.0", pytest.approx(75))


def test_bad_options_and_a_missing_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"predictions": ["a"], "references": ["a"]}
    with pytest.raises(ValueError, match="did you mean wordnet"):
        load_metric("meteor", wordnett="none")
    metric = load_metric("meteor")
    imported = builtins.__import__

    def without_nltk(name: str, *rest: Any) -> Any:
        if name == "nltk":
            raise ImportError(name)
        return imported(name, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "__import__", without_nltk)
        with pytest.raises(ValueError, match=r"pip install 'vanilla_transformer\[meteor\]'"):
            metric.compute(**arguments)
    pytest.importorskip("nltk", reason=NEEDS_NLTK)
    with pytest.raises(ValueError, match=r"must be 'auto', 'none' or a folder"):
        metric.compute(**arguments, wordnet=str(tmp_path))
    assert len(metric) == 0
