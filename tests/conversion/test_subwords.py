"""Tensor2Tensor's subwords against their definition."""

import random
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tests.conversion.naive_tensor2tensor import EOS, NaiveSubwords
from vanilla_transformer.conversion.subwords import read_subwords, subword_tokenizer

ALPHABET = "abcdehilnorstuw DÄß.,'-\\_;0123456789"
SUBWORDS = [
    "<pad>",
    "<EOS>",
    ", _",
    "the_",
    "so_",
    "er",
    "th",
    "in",
    " - _",
    "\\u_",
    "12",
    "_",
]
TEXTS = [
    "Dude - that's so cool.",
    " so  the so, the  ",
    "a_b \\ c\\u \\\\u x\\12; _",
    "Ba\u0165a \u0158\u00ed\u010dany \u2009so",
    "",
    "the\nso",
    "<pad> <EOS>",
]


@pytest.fixture(scope="module")
def subwords() -> list[str]:
    known = set(SUBWORDS)
    return SUBWORDS + [c for c in dict.fromkeys(ALPHABET + "<>padEOS") if c not in known]


@pytest.fixture(scope="module")
def tokenizer(
    subwords: list[str], tmp_path_factory: pytest.TempPathFactory
) -> PreTrainedTokenizerBase:
    folder = tmp_path_factory.mktemp("tokenizer")
    subword_tokenizer(subwords)[0].save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def test_ids_and_text_are_those_of_the_definition(
    tokenizer: PreTrainedTokenizerBase, subwords: list[str]
) -> None:
    naive = NaiveSubwords(subwords)
    draw = random.Random(0)
    texts = TEXTS + ["".join(draw.choices(ALPHABET + "  \u0165\u00e9", k=30)) for _ in range(200)]
    for text in texts:
        expected = naive.encode(text)
        assert tokenizer(text)["input_ids"] == [*expected, EOS], text
        assert tokenizer.decode([*expected, EOS], skip_special_tokens=True) == text
        assert naive.decode(expected) == text


def test_far_characters_are_read_by_their_numbers(
    tokenizer: PreTrainedTokenizerBase, subwords: list[str]
) -> None:
    naive = NaiveSubwords(subwords)
    for text in ("\u65e5\u672c", "so \U0001f600"):
        assert tokenizer(text)["input_ids"] == [*naive.encode(text), EOS]
    ids = tokenizer("\u65e5")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "\\26085;"
    assert tokenizer("\U00020000")["input_ids"] == tokenizer("\u3013")["input_ids"]


def test_a_vocabulary_file_is_read_and_checked(tmp_path: Path, subwords: list[str]) -> None:
    path = tmp_path / "vocab.subwords"
    path.write_text("".join(f"'{s}'\n" for s in subwords), "utf-8")
    assert read_subwords(path) == subwords
    for lines in (subwords[1:], [*subwords, "the_"], [*subwords[:-1], "q\u00e9"]):
        path.write_text("".join(f"'{s}'\n" for s in lines), "utf-8")
        with pytest.raises(ValueError, match="vocab"):
            read_subwords(path)
