"""Pairs to ids, ids to batches, ids back to text."""

import time

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerBase

from vanilla_transformer.data.corpora import load_parallel
from vanilla_transformer.tasks.translation import (
    EncodingReport,
    decode_predictions,
    encode_pairs,
    translation_collator,
)
from vanilla_transformer.tokenization import train_tokenizer

PAIRS = [
    {"source": "The dog sees the house.", "target": "Der Hund sieht das Haus."},
    {"source": "no", "target": "nein"},
    {"source": "It says </s> twice.", "target": "Es sagt </s> zweimal, also </s>."},
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer([text for pair in PAIRS for text in pair.values()] * 2, 300)


@pytest.fixture(params=["map-style", "streaming"])
def kind(request):
    return request.param


def as_kind(rows: list[dict], kind: str) -> Dataset | IterableDataset:
    dataset = Dataset.from_list(rows)
    return dataset if kind == "map-style" else dataset.to_iterable_dataset()


def test_pairs_become_ids(tokenizer, kind):
    encoded, report = encode_pairs(as_kind(PAIRS, kind), tokenizer)
    assert isinstance(encoded, Dataset if kind == "map-style" else IterableDataset)
    assert encoded.column_names == ["input_ids", "labels"]
    rows = list(encoded)
    for row, pair in zip(rows, PAIRS, strict=True):
        for column, side in (("input_ids", "source"), ("labels", "target")):
            assert row[column] == tokenizer(pair[side])["input_ids"]
            # Exactly one end of sentence, and it is the last.
            assert row[column].index(2) == len(row[column]) - 1
    assert report == EncodingReport(read=3, kept=3, too_long=0)


def test_other_columns_do_not_come_along(tokenizer, kind):
    rows = [{"id": "1", **PAIRS[0]}]
    encoded, _ = encode_pairs(as_kind(rows, kind), tokenizer)
    assert list(next(iter(encoded))) == ["input_ids", "labels"]


@pytest.mark.parametrize("side", ["source", "target"])
def test_long_pairs_are_dropped_whole_and_counted(tokenizer, kind, side):
    kept = {"source": "x", "target": "x", side: "xyz"}
    length = len(tokenizer("xyz")["input_ids"])
    assert length == 4
    rows = [{"source": "x", "target": "x", side: "xyzx"}, kept]

    encoded, report = encode_pairs(as_kind(rows, kind), tokenizer, max_length=length)
    column = "input_ids" if side == "source" else "labels"
    assert [row[column] for row in encoded] == [tokenizer("xyz")["input_ids"]]
    assert report == EncodingReport(read=2, kept=1, too_long=1)

    encoded, report = encode_pairs(as_kind(rows, kind), tokenizer, max_length=length - 1)
    assert list(encoded) == []
    assert report == EncodingReport(read=2, kept=0, too_long=2)


def test_sentence_of_100_000_tokens(tokenizer, kind):
    rows = [*PAIRS, {"source": "ab " * 100_000, "target": "x"}]
    encoded, report = encode_pairs(as_kind(rows, kind), tokenizer)
    assert len(list(encoded)) == 3
    assert report.too_long == 1
    encoded, report = encode_pairs(as_kind(rows, kind), tokenizer, max_length=None)
    assert max(len(row["input_ids"]) for row in encoded) > 100_000
    assert report == EncodingReport(read=4, kept=4, too_long=0)


def test_streaming_counts_are_those_of_the_latest_pass(tokenizer):
    encoded, report = encode_pairs(as_kind(PAIRS, "streaming"), tokenizer, max_length=5)
    assert report == EncodingReport()
    for _ in range(2):
        kept = len(list(encoded))
        assert report == EncodingReport(read=3, kept=kept, too_long=3 - kept)


def test_processes_give_the_same_rows(tokenizer):
    dataset = Dataset.from_list(PAIRS * 10)
    one, report = encode_pairs(dataset, tokenizer, max_length=20)
    two, report_of_two = encode_pairs(dataset, tokenizer, max_length=20, num_proc=2)
    assert two.to_list() == one.to_list()
    assert report_of_two == report


def test_second_encoding_comes_from_the_cache(tokenizer, tmp_path):
    path = tmp_path / "pairs.tsv"
    lines = ("\t".join(pair.values()) for pair in PAIRS)
    path.write_text("\n".join(["source\ttarget", *lines]), encoding="utf-8")
    dataset, _ = load_parallel(path, "en", "de", cache_dir=tmp_path)
    encoded, report = encode_pairs(dataset, tokenizer, max_length=12)

    tokenizer(["used", "in between"])
    again, same_report = encode_pairs(dataset, tokenizer, max_length=12)
    assert again.cache_files == encoded.cache_files
    assert same_report == report
    other, _ = encode_pairs(dataset, tokenizer, max_length=None)
    assert other.cache_files != encoded.cache_files


def test_batch_is_padded_on_the_right(tokenizer):
    encoded, _ = encode_pairs(Dataset.from_list(PAIRS), tokenizer)
    rows = list(encoded)
    batch = translation_collator(tokenizer)(rows)
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    for index, row in enumerate(rows):
        length = len(row["input_ids"])
        assert batch["input_ids"][index, :length].tolist() == row["input_ids"]
        assert (batch["input_ids"][index, length:] == 0).all()
        assert batch["attention_mask"][index].sum() == length
        assert batch["attention_mask"][index, :length].all()
        length = len(row["labels"])
        assert batch["labels"][index, :length].tolist() == row["labels"]
        assert (batch["labels"][index, length:] == -100).all()
    # No longer than the longest.
    assert batch["input_ids"].shape == (3, max(len(row["input_ids"]) for row in rows))
    assert batch["labels"].shape == (3, max(len(row["labels"]) for row in rows))
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_batch_padded_to_a_multiple(tokenizer):
    rows = list(encode_pairs(Dataset.from_list(PAIRS), tokenizer)[0])
    batch = translation_collator(tokenizer, pad_to_multiple_of=8)(rows)
    assert batch["input_ids"].shape[1] % 8 == 0
    assert batch["labels"].shape[1] % 8 == 0
    assert isinstance(translation_collator(tokenizer), DataCollatorForSeq2Seq)


@pytest.mark.parametrize("container", [list, np.array, torch.tensor])
def test_predictions_become_text(tokenizer, container):
    texts = [pair["target"] for pair in PAIRS]
    rows = [[1, *tokenizer(text)["input_ids"]] for text in texts]
    width = max(map(len, rows)) + 2
    # generate pads with the pad token, a gathering of labels with -100.
    padded = [row + [0] + [-100] * (width - len(row) - 1) for row in rows]
    assert decode_predictions(container(padded), tokenizer) == texts


def test_predictions_keep_their_spaces(tokenizer):
    text = " two  spaces , do n't touch ."
    assert decode_predictions([tokenizer(text)["input_ids"]], tokenizer) == [text]


def test_no_predictions(tokenizer):
    assert decode_predictions([], tokenizer) == []
    assert decode_predictions([[]], tokenizer) == [""]


@pytest.mark.slow
def test_speed_and_round_trip_of_a_real_corpus(shared_data, tmp_path):
    dataset, _ = load_parallel(shared_data / "multi30k", "en", "de", cache_dir=tmp_path)
    texts = [text for column in ("source", "target") for text in dataset[column]]
    tokenizer = train_tokenizer(texts, 10_000)
    start = time.perf_counter()
    encoded, report = encode_pairs(dataset, tokenizer)
    # 3 s on two idle cores.
    assert time.perf_counter() - start < 15
    assert report == EncodingReport(read=29_000, kept=29_000, too_long=0)
    assert decode_predictions(encoded["labels"][:], tokenizer) == dataset["target"][:]
