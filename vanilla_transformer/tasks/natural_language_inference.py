"""Natural language inference: pairs to model inputs and batches, logits to labels and files.

An encoded pair has `input_ids` (`premise </s> hypothesis </s>`) and `labels`, the model's own
number for the relation. The model tells the two segments apart by the first `</s>`, so no
`token_type_ids` are needed. For `VanillaTransformerForConditionalGeneration` the same pairs become
text and the label is generated as a word.

Shapes: N examples, C labels of the model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, List, Value
from transformers import (
    DataCollatorWithPadding,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..atomic_file import atomic_file
from ..data.inference_corpora import LABELS, TWO_WAY_LABELS, label_meaning

_ENCODED = Features({"input_ids": List(Value("int32")), "labels": Value("int64")})
# What the loss ignores.
_NO_LABEL = -100


@dataclass
class InferenceEncodingReport:
    """How many pairs were encoded, and what became of those over the budget."""

    read: int = 0
    kept: int = 0
    dropped_too_long: int = 0
    truncated: int = 0


def check_label_names(names: Sequence[str], config: PreTrainedConfig) -> list[int]:
    """Find the model's number for each label of a data set, by name.

    Args:
        names: Labels of the data set in the order of its numbers
            (`dataset.features["label"].names`).
        config: Of a classifier; its `id2label` says what it was trained on, in whatever order.

    Returns:
        For each label of the data set the model's number. A model with two labels takes neutral
        and contradiction both as its not_entailment.

    Raises:
        ValueError: If the model's labels are unnamed (LABEL_0, ...) or unknown, or if it lacks
            one of the data set's.
    """
    found = [str(config.id2label[number]) for number in sorted(config.id2label)]
    meanings = [label_meaning(name) for name in found]
    if sorted(map(str, meanings)) not in (sorted(LABELS), sorted(TWO_WAY_LABELS)):
        raise ValueError(
            f"the model's labels are {', '.join(map(repr, found))}; they must be "
            f"{', '.join(LABELS)}, or {', '.join(TWO_WAY_LABELS)}, in any order: set "
            f"config.id2label = {dict(enumerate(LABELS))} (and label2id), in the order that the "
            "model was trained with"
        )
    numbers = {meaning: number for number, meaning in enumerate(meanings)}
    if "not_entailment" in numbers:
        numbers |= dict.fromkeys(("neutral", "contradiction"), numbers["not_entailment"])
    missing = [name for name in names if label_meaning(name) not in numbers]
    if missing:
        raise ValueError(
            f"the model ({', '.join(found)}) has no label {', '.join(map(repr, missing))}; train "
            "on a set with the model's labels (evaluation can map three labels onto two)"
        )
    return [numbers[label_meaning(name)] for name in names]


def encode_inference(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig,
    *,
    for_training: bool,
    max_length: int = 256,
    num_proc: int | None = None,
) -> tuple[Dataset, InferenceEncodingReport]:
    """Turn premise, hypothesis and label into `input_ids` and `labels`.

    Args:
        dataset: As `load_inference` gives it.
        tokenizer: Any tokenizer of transformers that ends each sentence of a pair itself.
        config: The classifier's, with its labels named: they decide the numbers in `labels`.
        for_training: Drop pairs of more than `max_length` tokens, and pairs without a label:
            a sentence cut in the middle may have lost what makes its label true. Otherwise every
            pair is kept, in order, and its longer side is cut, token by token, until it fits.
        max_length: Budget for the pair in tokens, both `</s>` included.
        num_proc: Processes to encode with.

    Returns:
        The encoded pairs and the counts. `labels` is -100 where there is none, and, outside of
        training, throughout for a set with two labels and a model with three.

    Raises:
        ValueError: If the budget has no room for a token of each side, or as `check_label_names`.
    """
    # Two ends of sentence, and a token on either side of the first.
    if max_length < 4:
        raise ValueError(f"max_length ({max_length}) must be at least 4; 256 holds any usual pair")
    names = dataset.features["label"].names
    if not for_training and tuple(names) == TWO_WAY_LABELS and config.num_labels == len(LABELS):
        check_label_names(LABELS, config)
        numbers = [_NO_LABEL] * len(names)
    else:
        numbers = check_label_names(names, config)
    encoded = dataset.map(
        _encode_batch,
        batched=True,
        num_proc=num_proc,
        fn_kwargs={"tokenizer": tokenizer, "max_length": max_length, "numbers": numbers},
        remove_columns=dataset.column_names,
        features=Features({**_ENCODED, "too_long": Value("bool")}),
        desc="encoding",
    )
    too_long = np.asarray(encoded.with_format("numpy")["too_long"], dtype=bool)
    report = InferenceEncodingReport(read=len(dataset))
    if for_training:
        report.dropped_too_long = int(too_long.sum())
        labels = np.asarray(encoded.with_format("numpy")["labels"])
        encoded = encoded.select(np.flatnonzero(~too_long & (labels != _NO_LABEL)))
    else:
        report.truncated = int(too_long.sum())
    report.kept = len(encoded)
    return encoded.remove_columns("too_long"), report


def _encode_batch(
    batch: dict[str, list[Any]],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    numbers: list[int],
) -> dict[str, list[Any]]:
    """Encode a batch of pairs, marking those that had to be cut."""
    options = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
    sides = (batch["premise"], batch["hypothesis"])
    input_ids = tokenizer(*sides, **options)["input_ids"]
    too_long = [len(ids) > max_length for ids in input_ids]
    if any(too_long):
        cut = {"truncation": "longest_first", "max_length": max_length}
        input_ids = tokenizer(*sides, **cut, **options)["input_ids"]
    labels = [_NO_LABEL if label < 0 else numbers[label] for label in batch["label"]]
    return {"input_ids": input_ids, "labels": labels, "too_long": too_long}


def inference_collator(
    tokenizer: PreTrainedTokenizerBase, pad_to_multiple_of: int | None = None
) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    """Make the function that pads encoded pairs into a batch of tensors.

    Returns:
        A collator giving `input_ids` [B, S] and `attention_mask` [B, S], padded on the right, and
        `labels` [B].
    """
    return DataCollatorWithPadding(tokenizer, pad_to_multiple_of=pad_to_multiple_of)


# Predictions


@torch.inference_mode()
def predict_logits(
    model: PreTrainedModel,
    encoded: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int = 64,
    process_index: int = 0,
    num_processes: int = 1,
) -> np.ndarray:
    """Run a classifier over encoded pairs, in evaluation mode and on the model's device.

    Args:
        model: The classifier.
        encoded: As `encode_inference` gives them.
        tokenizer: The model's own.
        batch_size: Pairs computed at once.
        process_index, num_processes: Which share of the batches to compute, the same batches
            however many share them; in the other rows stands 0, so that the sum over the processes
            is what one alone computes.

    Returns:
        Logits [N, C] in the order of `encoded`, in float32.
    """
    was_training = model.training
    model.eval()
    collate = inference_collator(tokenizer)
    rows = list(encoded["input_ids"])
    # Neighbours of like length waste little on padding.
    order = sorted(range(len(encoded)), key=lambda row: len(rows[row]))
    logits = np.zeros((len(encoded), model.config.num_labels), dtype=np.float32)
    for start in range(batch_size * process_index, len(order), batch_size * num_processes):
        chosen = order[start : start + batch_size]
        batch = collate([{"input_ids": rows[row]} for row in chosen])
        inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
        logits[chosen] = model(**inputs).logits.float().cpu().numpy()
    model.train(was_training)
    return logits


def label_probabilities(logits: np.ndarray, config: PreTrainedConfig) -> np.ndarray:
    """Turn logits [N, C] into probabilities whose columns are in the order of our labels.

    Returns:
        [N, 3] in the order of `LABELS`, or [N, 2] in that of `TWO_WAY_LABELS`, by what the model
        has: as `evaluate_inference` takes them, whatever order the model was trained with.

    Raises:
        ValueError: As `check_label_names`; logits that are not one column a label, or not finite.
    """
    names = LABELS if config.num_labels == len(LABELS) else TWO_WAY_LABELS
    columns = check_label_names(names, config)
    if logits.ndim != 2 or logits.shape[1] != len(columns):
        raise ValueError(
            f"logits of shape {logits.shape} must be [N, {len(columns)}], one column a label"
        )
    if not np.isfinite(logits).all():
        row = int(np.flatnonzero(~np.isfinite(logits).all(axis=1))[0])
        raise ValueError(f"logits of row {row} are not finite: {logits[row].tolist()}")
    ordered = logits[:, columns].astype(np.float64)
    exponentials = np.exp(ordered - ordered.max(axis=1, keepdims=True))
    probabilities: np.ndarray = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities


def write_glue_tsv(
    path: str | Path, ids: Sequence[str], labels: Sequence[int], names: Sequence[str]
) -> None:
    """Write predictions as GLUE takes them: a header, then `index` and label name by tab.

    GLUE knows the sets by the names of the files: MNLI-m.tsv, MNLI-mm.tsv, AX.tsv, RTE.tsv.

    Args:
        path: File to write, whole or not at all.
        ids: Column `id` of the data set, which must be GLUE's index.
        labels: Predicted label of each, as a position in `names`.
        names: `LABELS`, or for RTE `TWO_WAY_LABELS`.

    Raises:
        ValueError: Unequal lengths, an id that is no number or comes twice, an unknown label.
    """
    if len(ids) != len(labels):
        raise ValueError(f"{len(ids)} ids and {len(labels)} labels; give one label for each id")
    rows: dict[int, str] = {}
    for identity, label in zip(ids, labels, strict=True):
        if not str(identity).isdecimal():
            raise ValueError(f"id {identity!r} is no number; GLUE numbers its rows from 0")
        if int(identity) in rows:
            raise ValueError(f"id {identity} comes twice; GLUE wants each row once")
        if not 0 <= label < len(names):
            raise ValueError(f"id {identity}: label {label} is none of {', '.join(names)}")
        rows[int(identity)] = names[label]
    text = "".join(f"{index}\t{name}\n" for index, name in sorted(rows.items()))
    with atomic_file(Path(path)) as temporary:
        temporary.write_text(f"index\tprediction\n{text}", encoding="utf-8")


# The generative route


def inference_as_text(dataset: Dataset) -> Dataset:
    """Turn pairs into `source` and `target` text, for the encoder-decoder and `encode_pairs`.

    The source is `hypothesis: ... premise: ...`, the target the name of the label, empty where
    there is none. The hypothesis comes first because it is short: a source that is cut at the end
    keeps it.
    """
    names = dataset.features["label"].names

    def as_text(batch: Mapping[str, list[Any]]) -> dict[str, list[str]]:
        pairs = zip(batch["premise"], batch["hypothesis"], strict=True)
        return {
            "source": [
                f"hypothesis: {hypothesis} premise: {premise}" for premise, hypothesis in pairs
            ],
            "target": ["" if label < 0 else names[label] for label in batch["label"]],
        }

    return dataset.map(as_text, batched=True, remove_columns=dataset.column_names)


def labels_from_text(texts: Sequence[str], names: Sequence[str]) -> list[int]:
    """Read generated labels back.

    Args:
        texts: What the model wrote; spelling as in data files, blanks and a final full stop free.
        names: Labels of the data set, `LABELS` or `TWO_WAY_LABELS`.

    Returns:
        The position in `names` of each; neutral and contradiction are not_entailment where there
        are two. -1 where the text is no label: that answer is wrong whatever the gold label is.
    """
    positions: dict[str | None, int] = {name: position for position, name in enumerate(names)}
    if tuple(names) == TWO_WAY_LABELS:
        positions |= {"neutral": 1, "contradiction": 1}
    return [positions.get(label_meaning(text.strip().rstrip(".")), -1) for text in texts]
