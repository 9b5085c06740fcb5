"""The shared tokenizer: lossless, deterministic, stock, and with fixed special tokens."""

import json
import logging
import random
import string
import subprocess
import sys
import unicodedata
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


# Without capital letters


@pytest.fixture(scope="module")
def lowercase() -> PreTrainedTokenizerBase:
    return train_tokenizer(TEXTS, 300, lowercase=True)


def test_a_lowercase_tokenizer_takes_capital_letters_for_small_ones(tokenizer, lowercase):
    assert (
        lowercase("The DOG sees ÜBER")["input_ids"] == lowercase("the dog sees über")["input_ids"]
    )
    assert tokenizer("DOG")["input_ids"] != tokenizer("dog")["input_ids"]
    # It has learned from small letters only: its merges are spent on nothing else.
    assert "ĠThe" not in lowercase.get_vocab()
    assert any(token.isupper() for token in set(tokenizer.get_vocab()) - set("<>/"))
    pair = lowercase("Dog", "HOUSE")["input_ids"]
    assert pair == lowercase("dog", "house")["input_ids"]
    assert pair.count(2) == 2


@pytest.mark.parametrize("text", HOSTILE_TEXTS)
def test_hostile_text_survives_in_small_letters(lowercase, text):
    assert round_trip(lowercase, [text]) == [text.lower()]


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.text(st.characters(exclude_categories=["Cs", "Lu", "Lt"])))
def test_any_text_without_capital_letters_survives(lowercase, text):
    assert round_trip(lowercase, [text]) == [text.lower()]


def test_offsets_of_a_lowercase_tokenizer_point_into_the_text_as_given(lowercase):
    text = "The DOG sees  the House."
    encoded = lowercase(text, return_offsets_mapping=True)
    pieces = [text[start:end] for start, end in encoded["offset_mapping"]]
    assert "".join(pieces) == text.replace(" ", "")
    # A letter that becomes two, and letters of several bytes.
    text = "In İSTANBUL the ÜBERHÖHTE Haus ẞ, the DOG."
    encoded = lowercase(text, return_offsets_mapping=True)
    covered = {place for start, end in encoded["offset_mapping"] for place in range(start, end)}
    assert covered == {place for place, letter in enumerate(text) if letter != " "}
    dog = text.index("DOG")
    first, last = encoded.char_to_token(dog), encoded.char_to_token(dog + 2)
    start, end = encoded["offset_mapping"][first][0], encoded["offset_mapping"][last][1]
    assert text[start:end] == "DOG"


def test_a_lowercase_tokenizer_is_saved_as_one(lowercase, tmp_path):
    lowercase.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded(HOSTILE_TEXTS) == lowercase(HOSTILE_TEXTS)
    assert loaded("DOG")["input_ids"] == lowercase("dog")["input_ids"]
    assert loaded.unk_token_id not in loaded("GRÜSSE ẞ")["input_ids"]


# Without punctuation


def is_kept(letter: str) -> bool:
    is_punctuation = unicodedata.category(letter).startswith("P") or letter in string.punctuation
    return not is_punctuation and not letter.isspace()


def words(text: str) -> str:
    return " ".join("".join(one if is_kept(one) else " " for one in text).split())


@pytest.fixture(scope="module", params=[False, True], ids=["as given", "lowercase"])
def stripping(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    return train_tokenizer(TEXTS, 300, lowercase=request.param, strip_punctuation=True)


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("a dog, a house.", "a dog a house"),
        ("“the dog” — ‘a’ house…", "the dog a house"),
        ("a t-shirt, and/or\tthe child's", "a t shirt and or the child s"),
        ("¿qué? ¡sí! (á) 日本、東京。", "qué sí á 日本 東京"),
        ("it `s 3.50 $ + <x> = a^b|c~d_e 5€", "it s 3 50 x a b c d e 5€"),
        ("the end.the\u00a0dog\n", "the end the dog"),
        ("</s>", "s"),
        (string.punctuation, ""),
        (" \u3000…\n!", ""),
    ],
)
def test_a_stripping_tokenizer_takes_punctuation_for_blanks(
    tokenizer: PreTrainedTokenizerBase, stripping: PreTrainedTokenizerBase, text: str, other: str
) -> None:
    assert stripping(text) == stripping(other)
    assert round_trip(stripping, [text]) == [other]
    assert tokenizer(text) != tokenizer(other)


def test_a_stripping_tokenizer_learns_nothing_of_punctuation(
    tokenizer: PreTrainedTokenizerBase, stripping: PreTrainedTokenizerBase
) -> None:
    def merged(learner: PreTrainedTokenizerBase) -> list[str]:
        return [token for token, place in learner.get_vocab().items() if place >= 261]

    assert any(not is_kept(token[-1]) for token in merged(tokenizer))
    assert all(is_kept(token[-1]) for token in merged(stripping))


def test_punctuation_alone_is_an_empty_text(stripping: PreTrainedTokenizerBase) -> None:
    assert stripping("...") == {"input_ids": [2], "attention_mask": [1]}
    dog = stripping("dog", add_special_tokens=False)["input_ids"]
    assert stripping("?!", "dog!")["input_ids"] == [2, *dog, 2]
    assert stripping("dog!", "?")["input_ids"] == [*dog, 2, 2]


def test_a_stripping_tokenizer_recognises_special_tokens(
    stripping: PreTrainedTokenizerBase,
) -> None:
    dog = stripping("dog", add_special_tokens=False)["input_ids"]
    assert stripping("dog, <mask>.", split_special_tokens=False)["input_ids"] == [*dog, 4, 2]
    assert 4 not in stripping("dog, <mask>.")["input_ids"]


# Punctuation and blanks of one byte and of several, letters that become two in small letters.
@settings(deadline=None, max_examples=300, derandomize=True)
@given(text=st.text(" \n\u00a0.,'\"-/(…“—€½aBz9éß日👩\u0301ẞİ"))
def test_offsets_of_a_stripping_tokenizer_point_at_the_words(
    stripping: PreTrainedTokenizerBase, text: str
) -> None:
    encoded = stripping(text, return_offsets_mapping=True)
    covered = {place for start, end in encoded["offset_mapping"] for place in range(start, end)}
    assert covered == {place for place, letter in enumerate(text) if is_kept(letter)}
    is_lowercase = stripping("A") == stripping("a")
    assert round_trip(stripping, [text]) == [words(text.lower() if is_lowercase else text)]


def test_a_stripping_tokenizer_is_saved_as_one(
    stripping: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    stripping.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path)(HOSTILE_TEXTS) == stripping(HOSTILE_TEXTS)
    assert load_tokenizer(tmp_path)("the dog") == stripping("“the” dog!")
