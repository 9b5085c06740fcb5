"""BLEU by every convention: sacreBLEU's command line, Perl's substitution, BLEU by definition."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import sacrebleu

from vanilla_transformer.evaluation.bleu_table import (
    bleu_table,
    format_bleu_table,
    moses_tokenizer,
    split_compounds,
)

PREDICTIONS = [
    "Der Rich-Text-Editor öffnet die Datei „a-b-c“ nicht mehr.",
    "Ein U-Boot-Kapitän sagt: 'Es kostet 3,50€ – oder mehr!'",
    "Das Mädchen springt über den hohen Zaun .",
]
REFERENCES = [
    "Der Rich-Text-Editor öffnet diese Datei „a-b-c“ nicht mehr.",
    "Ein U-Boot-Kapitän sagt: 'Es kostet 3,50€ – oder mehr!'",
    "Ein Mädchen springt über den Hohen Zaun.",
]


@pytest.mark.parametrize(
    ("convention", "options"),
    [
        ("13a", []),
        ("intl", ["--tokenize", "intl"]),
        ("13a lower-cased", ["--lowercase"]),
    ],
)
def test_equals_sacrebleu_command_line(tmp_path: Path, convention: str, options: list[str]) -> None:
    for name, lines in (("hypotheses", PREDICTIONS), ("references", REFERENCES)):
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    command = "-m sacrebleu references -i hypotheses --format json --width 12"
    finished = subprocess.run(
        [sys.executable, *command.split(), *options],
        check=True,
        capture_output=True,
        cwd=tmp_path,
        timeout=120,
        env={**os.environ, "PYTHONUTF8": "1"},
    )
    expected = json.loads(finished.stdout)
    row = bleu_table(PREDICTIONS, REFERENCES)[convention]
    assert row["score"] == pytest.approx(expected["score"], abs=1e-9)
    assert row["signature"] == expected["signature"]


def test_compounds_are_split_as_perl_splits_them() -> None:
    assert split_compounds("rich-text format") == "rich ##AT##-##AT## text format"
    # Of two hyphens about one character, the second is left.
    assert split_compounds("U-Boot a-b-c - -x y-") == (
        "U ##AT##-##AT## Boot a ##AT##-##AT## b-c - -x y-"
    )
    perl = shutil.which("perl")
    if perl is None:
        pytest.skip("perl is not installed")
    finished = subprocess.run(
        [perl, "-CSD", "-ple", r"s{(\S)-(\S)}{$1 ##AT##-##AT## $2}g"],
        input="\n".join([*PREDICTIONS, "a--b a---b 1-2-3-4 x- -y"]) + "\n",
        capture_output=True,
        check=True,
        encoding="utf-8",
        timeout=60,
    )
    lines = [*PREDICTIONS, "a--b a---b 1-2-3-4 x- -y"]
    assert finished.stdout.splitlines() == [split_compounds(line) for line in lines]


def test_compound_split_is_bleu_over_those_tokens() -> None:
    def tokenize(text: str) -> str:
        return text.replace(".", " .").replace("“", " “").replace("„", "„ ")

    row = bleu_table(PREDICTIONS, REFERENCES, tokenize=tokenize, tokenizer_name="own")[
        "compounds split"
    ]
    pairs = [
        [split_compounds(tokenize(text)).split() for text in pair]
        for pair in zip(PREDICTIONS, REFERENCES, strict=True)
    ]
    # As multi-bleu.perl: clipped n-gram counts of the corpus, and the brevity penalty.
    logarithms = []
    for order in range(1, 5):
        right = total = 0
        for prediction, reference in pairs:
            found, wanted = (
                Counter(tuple(side[i : i + order]) for i in range(len(side) - order + 1))
                for side in (prediction, reference)
            )
            right, total = right + (found & wanted).total(), total + found.total()
        logarithms.append(math.log(right / total))
    ours, theirs = (sum(len(pair[side]) for pair in pairs) for side in (0, 1))
    expected = 100 * math.exp(min(0, 1 - theirs / ours) + sum(logarithms) / 4)
    assert row["score"] == pytest.approx(expected)
    assert "tok:own+hyphens" in row["signature"]


def test_conventions_differ_and_are_shown_side_by_side() -> None:
    table = bleu_table(PREDICTIONS, [[text] for text in REFERENCES])
    assert list(table) == ["13a", "intl", "13a lower-cased", "compounds split"]
    assert len({round(row["score"], 2) for row in table.values()}) == 4
    assert "tok:13a+hyphens" in table["compounds split"]["signature"]
    lines = format_bleu_table(table).splitlines()
    assert [line[:16].strip() for line in lines] == list(table)
    assert all(row["signature"] in line for row, line in zip(table.values(), lines, strict=True))


def test_a_language_that_is_cut_otherwise_has_a_convention_of_its_own() -> None:
    predictions, references = ["我有一只狗。", "他来了"], ["我有两只狗。", "她来了"]
    table = bleu_table(predictions, references, language="zh")
    expected = sacrebleu.corpus_bleu(predictions, [references], tokenize="zh").score
    assert table["zh"]["score"] == pytest.approx(expected)
    assert "tok:zh" in table["zh"]["signature"]
    assert "zh" not in bleu_table(predictions, references, language="de")


def test_moses_is_that_of_sacremoses() -> None:
    pytest.importorskip("sacremoses", reason="sacremoses is not installed (extra conversion)")
    tokenize = moses_tokenizer("de")
    # Replaced first, then cut: no other tokenizer makes three dots one token and z.B. one.
    assert tokenize("Er sagt：ja… z.B. U-Boote.") == "Er sagt : ja ... z.B. U-Boote ."
    row = bleu_table(PREDICTIONS, REFERENCES, tokenize=tokenize, tokenizer_name="moses.de")
    assert "tok:moses.de+hyphens" in row["compounds split"]["signature"]


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="no segment"):
        bleu_table([], [])
    with pytest.raises(ValueError, match="1 predictions and 2 references"):
        bleu_table(["a"], ["a", "b"])
