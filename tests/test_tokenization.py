"""The shared tokenizer: lossless, deterministic, stock, and with fixed special tokens."""

import json
import logging
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from vanilla_transformer.tokenization import load_tokenizer, train_tokenizer

TEXTS = [
    "The dog sees the old house.",
    "Der Hund sieht das alte Haus.",
    "Every child that reads a book knows the way </s></s> </s>",
    "Jedes Kind, das ein Buch liest, kennt den Weg <pad><pad> <s>.",
] * 3

HOSTILE_TEXTS = [
    "",
    " ",
    "  two  spaces , and a tab\t, a newline\n and\r\n both \n",
    "punctuation , with . spaces ! don 't n't do not",
    "</s>",
    "a </s> b<pad><s><unk><mask>c",
    "Grüße, naïve Façade «œuvre» „Zitat“ it’s — ½ €",
    "e\u0301 \u00e9 ﬁ \u200b\u00a0\u3000\ufeff 👩‍👩‍👧 日本語 \x00\x1f",
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(TEXTS, 300)


def round_trip(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[str]:
    return tokenizer.batch_decode(tokenizer(texts)["input_ids"], skip_special_tokens=True)


def parallel_lines(shared_data: Path, folder: str) -> Iterator[str]:
    for path in sorted((shared_data / folder).glob("*.parquet")):
        for row in pq.read_table(path)["translation"].to_pylist():
            yield from row.values()


def test_special_tokens_have_their_fixed_ids(tokenizer):
    names = ["<pad>", "<s>", "</s>", "<unk>", "<mask>"]
    assert tokenizer.convert_tokens_to_ids(names) == [0, 1, 2, 3, 4]
    named = [
        tokenizer.pad_token_id,
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        tokenizer.unk_token_id,
        tokenizer.mask_token_id,
    ]
    assert named == [0, 1, 2, 3, 4]


def test_sentence_and_pair_end_in_eos(tokenizer):
    dog, house = (tokenizer.encode(text, add_special_tokens=False) for text in ("dog", "house"))
    assert tokenizer("dog") == {"input_ids": [*dog, 2], "attention_mask": [1] * (len(dog) + 1)}
    assert tokenizer("dog", "house")["input_ids"] == [*dog, 2, *house, 2]
    assert tokenizer("")["input_ids"] == [2]


def test_merges_are_learned(tokenizer):
    assert len(tokenizer) == 300
    assert len(tokenizer("The dog sees the old house.")["input_ids"]) < 18


@pytest.mark.parametrize("text", HOSTILE_TEXTS)
def test_hostile_text_survives(tokenizer, text):
    assert round_trip(tokenizer, [text]) == [text]


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives(tokenizer, text):
    assert round_trip(tokenizer, [text]) == [text]


def test_every_byte_has_a_token(tokenizer):
    characters = "".join(map(chr, (*range(0x800), 0x4E2D, 0xFFFD, 0x1F600, 0x10FFFF)))
    assert tokenizer.unk_token_id not in tokenizer(characters)["input_ids"]
    assert round_trip(tokenizer, [characters]) == [characters]


def test_special_token_written_in_text_is_ordinary_text(tokenizer):
    ids = tokenizer("a </s> b<pad><s><unk><mask>")["input_ids"]
    assert [token for token in ids if token <= 4] == [2]
    assert ids[-1] == 2
    # fill-mask asks for the other behaviour.
    assert 4 in tokenizer("a <mask>", split_special_tokens=False)["input_ids"]
    assert 4 not in tokenizer("a <mask>")["input_ids"]


def test_offsets_point_at_the_words(tokenizer):
    text = "The dog sees  the house."
    encoded = tokenizer(text, return_offsets_mapping=True)
    pieces = [text[start:end] for start, end in encoded["offset_mapping"]]
    assert "".join(pieces) == text.replace(" ", "")


def test_same_texts_give_the_same_tokenizer_in_any_order(tokenizer):
    shuffled = random.Random(1).sample(TEXTS, len(TEXTS))
    again = train_tokenizer(iter(shuffled), 300)
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_saved_tokenizer_is_a_stock_one_without_this_package(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    # As in a model directory, where transformers without this package does not know the type.
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vanilla_transformer"}))
    program = """
import json, sys
sys.modules["vanilla_transformer"] = None
from transformers import AutoTokenizer, PreTrainedTokenizerFast
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
texts = json.loads(sys.stdin.read())
json.dump({
    "stock": type(tokenizer) is PreTrainedTokenizerFast,
    "ids": tokenizer(texts)["input_ids"],
    "pair": tokenizer("dog", "house")["input_ids"],
    "back": tokenizer.batch_decode(tokenizer(texts)["input_ids"], skip_special_tokens=True),
    "inputs": list(tokenizer("dog")),
    "special": [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id],
    "padding": tokenizer.padding_side,
}, sys.stdout)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        input=json.dumps(HOSTILE_TEXTS),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
        timeout=120,
    )
    assert json.loads(done.stdout) == {
        "stock": True,
        "ids": tokenizer(HOSTILE_TEXTS)["input_ids"],
        "pair": tokenizer("dog", "house")["input_ids"],
        "back": HOSTILE_TEXTS,
        "inputs": ["input_ids", "attention_mask"],
        "special": [0, 1, 2],
        "padding": "right",
    }


def test_load_tokenizer_gives_what_was_saved(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    for path in (tmp_path, str(tmp_path)):
        assert load_tokenizer(path)(HOSTILE_TEXTS) == tokenizer(HOSTILE_TEXTS)
    plain = AutoTokenizer.from_pretrained(tmp_path)
    assert plain.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


@pytest.mark.parametrize("broken", ["no file", "config alone", "torn tokenizer", "settings alone"])
def test_model_directory_without_a_tokenizer(tokenizer, tmp_path, broken):
    saved = tmp_path / "saved"
    tokenizer.save_pretrained(saved)
    model = tmp_path / "model"
    model.mkdir()
    if broken == "config alone":
        (model / "config.json").write_text(json.dumps({"model_type": "vanilla_transformer"}))
    if broken == "torn tokenizer":
        text = (saved / "tokenizer.json").read_text(encoding="utf-8")
        (model / "tokenizer.json").write_text(text[: len(text) // 2], encoding="utf-8")
    if broken in ("torn tokenizer", "settings alone"):
        (model / "tokenizer_config.json").write_text(
            (saved / "tokenizer_config.json").read_text(encoding="utf-8")
        )
    with pytest.raises(ValueError, match=r"model holds no whole tokenizer; .*save_pretrained\('"):
        load_tokenizer(model)


def test_directory_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="nowhere: no such directory"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="neither a directory nor a repository"):
        load_tokenizer(str(tmp_path / "nowhere"))


def test_vocabulary_too_small_for_the_bytes_is_refused():
    with pytest.raises(ValueError, match=r"vocab_size \(260\) must be at least 261"):
        train_tokenizer(TEXTS, 260)
    assert len(train_tokenizer(TEXTS, 261)) == 261


def test_text_too_short_for_the_vocabulary_is_said(caplog):
    with caplog.at_level(logging.WARNING):
        tokenizer = train_tokenizer(["aa aa", "aa aa"], 1000)
    assert len(tokenizer) < 270
    assert f"vocabulary of {len(tokenizer)} tokens, not 1000" in caplog.text


def test_pairs_below_the_minimum_frequency_are_not_merged():
    assert len(train_tokenizer(["xy"], 262)) == 261
    assert len(train_tokenizer(["xy"], 262, min_frequency=1)) == 262


def test_no_text_or_a_single_string_is_refused():
    with pytest.raises(ValueError, match="no text to train"):
        train_tokenizer([], 300)
    with pytest.raises(ValueError, match="give a list of sentences"):
        train_tokenizer("one sentence", 300)


@pytest.mark.parametrize(
    "folder", ["multi30k", "multi30k_tok", "tatoeba_en_fr", "libreoffice_help"]
)
def test_sample_of_real_text_survives(shared_data, tokenizer, folder):
    lines = list(parallel_lines(shared_data, folder))
    sample = random.Random(0).sample(lines, 500)
    assert round_trip(tokenizer, sample) == sample


@pytest.mark.slow
@pytest.mark.parametrize(
    "folder", ["multi30k", "multi30k_tok", "tatoeba_en_fr", "libreoffice_help"]
)
def test_all_real_text_survives(shared_data, folder):
    lines = list(parallel_lines(shared_data, folder))
    tokenizer = train_tokenizer(lines, 8000)
    assert len(tokenizer) == 8000
    wrong = [
        line for line, back in zip(lines, round_trip(tokenizer, lines), strict=True) if line != back
    ]
    assert wrong == []


def test_offsets_leave_out_the_blank_before_a_word_in_every_window() -> None:
    context = "the cat sat on the mat and the dog ran " * 5
    tokenizer = train_tokenizer([context] * 50, 300)
    windows = tokenizer(
        "the dog",
        context,
        truncation="only_second",
        max_length=14,
        stride=2,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    assert len(windows["input_ids"]) > 3
    for ids, offsets in zip(windows["input_ids"], windows["offset_mapping"], strict=True):
        for start, end in offsets[ids.index(2) + 1 : -1]:
            assert context[start:end] == context[start:end].strip()
