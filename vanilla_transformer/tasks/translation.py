"""Translation: sentence pairs to model inputs, model inputs to batches, output ids to text.

An encoded pair has `input_ids` (source, `A </s>`) and `labels` (target, `B </s>`). The model
shifts the labels right itself and starts its decoder with `<s>`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, IterableDataset, List, Value
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerBase

_ENCODED = Features({"input_ids": List(Value("int32")), "labels": List(Value("int32"))})


@dataclass
class EncodingReport:
    """How many pairs were encoded.

    For streamed data the counts are those of the latest pass, filled in as it is consumed.
    """

    read: int = 0
    kept: int = 0
    too_long: int = 0


def encode_pairs(
    dataset: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None = 512,
    num_proc: int | None = None,
) -> tuple[Dataset | IterableDataset, EncodingReport]:
    """Turn the columns `source` and `target` into `input_ids` and `labels`.

    Args:
        dataset: Parallel text, as `load_parallel` gives it.
        tokenizer: Any tokenizer of transformers that ends a sentence itself.
        max_length: Pairs with a side of more tokens, `</s>` included, are dropped and counted:
            a sentence cut in the middle teaches wrong translations. None keeps every pair.
        num_proc: Processes to encode with (map-style data only).

    Returns:
        The encoded pairs, map-style or streaming as the input was, and the counts.
    """
    report = EncodingReport()
    if isinstance(dataset, IterableDataset):
        examples = partial(_encode_stream, dataset, tokenizer, max_length, report)
        return IterableDataset.from_generator(examples, features=_ENCODED), report
    encoded = dataset.map(
        _encode_batch,
        batched=True,
        num_proc=num_proc,
        fn_kwargs={"tokenizer": tokenizer, "max_length": max_length},
        remove_columns=dataset.column_names,
        features=_ENCODED,
        desc="encoding",
    )
    report.read, report.kept = len(dataset), len(encoded)
    report.too_long = report.read - report.kept
    return encoded, report


def _encode_stream(
    dataset: IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    report: EncodingReport,
) -> Iterator[dict[str, list[int]]]:
    """Encode pairs as they come, counting in `report` from zero."""
    report.read = report.kept = report.too_long = 0
    for batch in dataset.iter(batch_size=1000):
        encoded = _encode_batch(batch, tokenizer, max_length)
        report.read += len(batch["source"])
        report.kept += len(encoded["labels"])
        report.too_long = report.read - report.kept
        for input_ids, labels in zip(encoded["input_ids"], encoded["labels"], strict=True):
            yield {"input_ids": input_ids, "labels": labels}


def _encode_batch(
    batch: dict[str, list[str]], tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> dict[str, list[list[int]]]:
    """Encode a batch of pairs, without those that have a side longer than `max_length`."""
    options = {"return_attention_mask": False, "verbose": False}
    sources = tokenizer(batch["source"], **options)["input_ids"]
    targets = tokenizer(text_target=batch["target"], **options)["input_ids"]
    pairs = [
        (source, target)
        for source, target in zip(sources, targets, strict=True)
        if max_length is None or max(len(source), len(target)) <= max_length
    ]
    return {
        "input_ids": [source for source, _ in pairs],
        "labels": [target for _, target in pairs],
    }


def translation_collator(
    tokenizer: PreTrainedTokenizerBase, pad_to_multiple_of: int | None = None
) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    """Make the function that pads encoded pairs into a batch of tensors.

    Returns:
        A collator giving `input_ids` [B, S] and `attention_mask` [B, S], padded on the right with
        the pad token, and `labels` [B, T], padded with -100, which the loss ignores.
    """
    return DataCollatorForSeq2Seq(
        tokenizer, label_pad_token_id=-100, pad_to_multiple_of=pad_to_multiple_of
    )


def decode_predictions(
    ids: Sequence[Sequence[int]] | np.ndarray | torch.Tensor, tokenizer: PreTrainedTokenizerBase
) -> list[str]:
    """Turn output ids [B, T] into text, leaving out special tokens and padding (-100 too)."""
    rows = ids if isinstance(ids, Sequence) else ids.tolist()
    return [
        tokenizer.decode(
            [int(token) for token in row if token >= 0],
            skip_special_tokens=True,
            # Moving spaces about would change the score of tokenised text.
            clean_up_tokenization_spaces=False,
        )
        for row in rows
    ]
