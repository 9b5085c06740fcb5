"""The report by domain: every class is what sacreBLEU says of the very sentences in it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import sacrebleu

from vanilla_transformer.evaluation.domains import (
    Domain,
    count_words,
    domain_report,
    format_domains,
    split_domains,
)

TRAINING = ["The dog sleeps.", "the dog runs, the cat doesn't"] * 6 + ["A rare well-known word"]
SOURCES = [
    "The dog sleeps in 2014.",
    "The rare dog runs",
    "",
    "A well-known gryphon " + "the " * 20,
    "the dog " * 30,
    "1999",
]
REFERENCES = [
    "Der Hund schläft 2014.",
    ["Der seltene Hund rennt", "Der rare Hund läuft"],
    "nichts",
    "Ein bekannter Greif " + "die " * 20,
    "der Hund " * 30,
    "1999",
]
PREDICTIONS = [
    "Der Hund schläft im Jahr 2014.",
    "Der seltene Hund läuft",
    "",
    "Ein Greif " + "die " * 15,
    "der Hund " * 29,
    "1999",
]
TEXTS = Domain(SOURCES, PREDICTIONS, REFERENCES)
LISTS = [[one] if isinstance(one, str) else one for one in REFERENCES]


def scores(rows: list[int]) -> dict[str, Any]:
    hypotheses = [PREDICTIONS[i] for i in rows]
    streams: list[Any] = [
        [LISTS[i][0] for i in rows],
        [LISTS[i][1] if len(LISTS[i]) > 1 else None for i in rows],
    ]
    if not any(streams[1]):
        streams.pop()
    return {
        "segments": len(rows),
        "bleu": sacrebleu.corpus_bleu(hypotheses, streams).score,
        "chrf": sacrebleu.corpus_chrf(hypotheses, streams).score,
    }


def test_whole_lengths_rare_words_and_worst() -> None:
    report = domain_report(
        {"news": TEXTS, "captions": (SOURCES[:2], PREDICTIONS[:2], REFERENCES[:2])},
        training_text=iter(TRAINING),
        num_worst=2,
        num_resamples=30,
    )
    assert list(report) == ["news", "captions"]
    news = report["news"]
    whole = scores(list(range(6)))
    assert news["segments"] == 6
    for metric in ("bleu", "chrf"):
        assert news[metric]["score"] == pytest.approx(whole[metric])
        low, high = news[metric]["interval"]
        assert low < high
        assert "bs:30" in news[metric]["signature"]
    # Words: 5, 4, 0, 22, 60, 1.
    lengths = {"0-10": [0, 1, 2, 5], "21-30": [3], "51+": [4]}
    assert set(news["by_length"]) == set(lengths)
    # "in" and "gryphon" were never met, "rare" once, "dog" 12 times; numbers and nothing do not
    # count.
    rare = {"0": [0, 3], "1-9": [1], "10-99": [4]}
    assert set(news["by_rarest_word"]) == set(rare)
    for group, classes in (("by_length", lengths), ("by_rarest_word", rare)):
        for label, rows in classes.items():
            assert news[group][label] == pytest.approx(scores(rows))
    each = [
        sacrebleu.sentence_chrf(hypothesis, references).score
        for hypothesis, references in zip(PREDICTIONS, LISTS, strict=True)
    ]
    order = sorted(range(6), key=lambda i: each[i])
    assert [one["segment"] - 1 for one in news["worst"]] == order[:2]
    assert [one["chrf"] for one in news["worst"]] == pytest.approx([each[i] for i in order[:2]])
    assert news["worst"][0]["source"] == SOURCES[order[0]]
    assert report["captions"]["segments"] == 2
    # It goes into JSON as it is.
    assert json.loads(json.dumps(report)) == report


def test_words_are_counted_without_case_and_only_once() -> None:
    counted = count_words(TRAINING)
    assert counted["the"] == 18
    assert counted["doesn't"] == 6
    assert counted["well-known"] == 1
    options: dict[str, Any] = {"num_resamples": 2}
    given = domain_report({"news": TEXTS}, training_text=counted, **options)
    assert given == domain_report({"news": TEXTS}, training_text=TRAINING, **options)
    assert domain_report({"news": TEXTS}, **options)["news"]["by_rarest_word"] is None


def test_markdown_shows_all_and_lets_no_text_become_markup() -> None:
    hostile = "<script>`x`</script>\n| a |"
    report = domain_report(
        {"technical": ([hostile], ["``` b"], ["c"])}, training_text=["c"], num_resamples=2
    )
    shown = format_domains(report)
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in shown.splitlines()]
    assert ["technical", "1"] in [row[:2] for row in cells]
    assert ["0", "1", "0.00", "0.00"] in cells
    # Also to be read as plain text.
    assert len({len(line) for line in shown.splitlines()[:3]}) == 1
    assert "`` <script>`x`</script> | a | ``" in shown
    assert "```` ``` b ````" in shown
    assert shown.count("\n## ") == 1
    assert "rarest word" not in format_domains(
        domain_report({"technical": (["a"], ["b"], ["c"])}, num_resamples=2)
    )


def test_scored_by_the_options_given() -> None:
    options = {"bleu": {"tokenize": "none"}, "chrf": {"lowercase": True}}
    texts = (["a b", "c"], ["Ein Haus.", "DAS"], ["ein haus .", "das"])
    news = domain_report({"news": texts}, options=options, num_resamples=2)["news"]
    chrf = sacrebleu.CHRF(lowercase=True)
    expected = {
        "bleu": sacrebleu.corpus_bleu(texts[1], [texts[2]], tokenize="none").score,
        "chrf": chrf.corpus_score(texts[1], [texts[2]]).score,
    }
    assert expected["chrf"] > sacrebleu.corpus_chrf(texts[1], [texts[2]]).score
    for metric, score in expected.items():
        assert news[metric]["score"] == pytest.approx(score)
        assert news["by_length"]["0-10"][metric] == pytest.approx(score)
    assert "tok:none" in news["bleu"]["signature"]
    assert "case:lc" in news["chrf"]["signature"]
    each = [
        chrf.sentence_score(one, [right]).score
        for one, right in zip(texts[1], texts[2], strict=True)
    ]
    assert [row["chrf"] for row in news["worst"]] == pytest.approx(sorted(each))


def test_labels_sort_text_into_domains() -> None:
    found = split_domains(["news", "talk ", "news"], Domain("abc", "def", [["g"], ["h"], ["i"]]))
    assert list(found.items()) == [
        ("news", Domain(["a", "c"], ["d", "f"], [["g"], ["i"]])),
        ("talk", Domain(["b"], ["e"], [["h"]])),
    ]
    with pytest.raises(ValueError, match="2 labels of domains, 3 sources"):
        split_domains(["news", "talk"], Domain("abc", "def", "ghi"))
    with pytest.raises(ValueError, match="segment 2 is blank"):
        split_domains(["news", " "], Domain("ab", "de", "gh"))


@pytest.mark.parametrize(
    ("domains", "message"),
    [
        ({}, "no domain"),
        ({"news": ([], [], [])}, "'news' has 0 sources"),
        ({"news": (["a"], ["a", "b"], ["a", "b"])}, "1 sources and 2 translations"),
        ({"news": (["a"], ["a"], ["a", "b"])}, "1 predictions and 2 references"),
        ({"news": (["a"], [3], ["a"])}, "prediction 0 must be a string"),
    ],
)
def test_bad_input_is_named(domains: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        domain_report(domains)
