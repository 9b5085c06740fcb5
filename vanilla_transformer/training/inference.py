"""Natural language inference as a run learns it: a label as a class, or written as a word.

Shapes: `N` pairs, `C` labels of the model.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..evaluation.classification_scores import macro_f1
from ..generation import PAPER_DECODING, DecodingSettings
from ..tasks.natural_language_inference import (
    check_label_names,
    encode_inference,
    inference_as_text,
    inference_collator,
    label_probabilities,
    labels_from_text,
    predict_logits,
)
from .settings import TrainingSettings
from .task import Task, Validation
from .translation import TextToTextTask, translate_texts
from .validation import validation_loss, whole_model

# What the loss leaves out.
_IGNORED = -100


class InferenceTask(Task):
    """Natural language inference with a classifier of two or three labels.

    Accuracy and macro-F1 are those of the model's labels, in percent.

    Args:
        tokenizer: Of the model.
        config: Of the model; its labels are named.
        pairs: To validate on, as `load_inference` gives them. Pairs without a label are left out.
        max_length: Of a pair in tokens; of a longer one the longer side is cut.

    Raises:
        ValueError: No pair has a label, or the model is no classifier of these labels. Regression
            and several labels at once are no inference: transformers' Trainer trains them.
    """

    metrics = ("accuracy", "macro_f1")
    item = "pairs"
    columns = ("input_ids", "labels")

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        config: PreTrainedConfig,
        pairs: Dataset,
        *,
        max_length: int = 256,
    ):
        if config.problem_type not in (None, "single_label_classification"):
            raise ValueError(
                f"problem_type ({config.problem_type!r}) must be 'single_label_classification': "
                "inference chooses one of two or three labels; train other problems with "
                "transformers' Trainer"
            )
        # A set of two labels would otherwise be taken, without any label that the model has.
        check_label_names(pairs.features["label"].names, config)
        self.tokenizer, self.config, self.pairs = tokenizer, config, _labelled(pairs)
        self.encoded, _ = encode_inference(
            self.pairs, tokenizer, config, for_training=False, max_length=max_length
        )
        self._collate = inference_collator(tokenizer)

    def prepare(self, model: PreTrainedModel) -> None:
        """Checks that the model has the labels of the task.

        Raises:
            ValueError: It has not, or has them in another order.
        """
        expected, found = (
            [str(config.id2label[number]) for number in sorted(config.id2label)]
            for config in (self.config, model.config)
        )
        if found != expected:
            raise ValueError(
                f"the model's labels are {', '.join(found)}, those of the task "
                f"{', '.join(expected)}; build the task with the model's own config"
            )

    def count(self, batch: Sequence[dict[str, Any]]) -> int:
        """Pairs with a label."""
        return sum(pair["labels"] != _IGNORED for pair in batch)

    def idle(self, example: dict[str, Any]) -> dict[str, Any]:
        """The pair with its label ignored."""
        return {**example, "labels": _IGNORED}

    def collate(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """As `inference_collator`."""
        return dict(self._collate(examples))

    def validate(
        self, accelerator: Accelerator, model: nn.Module, settings: TrainingSettings
    ) -> Validation:
        """Loss and scores on as many pairs as the settings say."""
        count = min(len(self.pairs), settings.validation_examples or len(self.pairs))
        encoded = self.encoded.select(range(count))
        with whole_model(accelerator, model) as inner:
            loss = validation_loss(accelerator, inner, self, encoded)
            logits = _shared_logits(accelerator, inner, self.tokenizer, encoded)
        gold, predicted = np.asarray(encoded["labels"]), logits.argmax(axis=1)
        num_labels = self.config.num_labels
        # Rows gold, columns predicted; the last column, for no label, stays empty.
        confusion = np.zeros((num_labels, num_labels + 1), dtype=np.int64)
        np.add.at(confusion, (gold, predicted), 1)
        scores = {
            "loss": loss,
            "accuracy": 100 * float((gold == predicted).mean()),
            "macro_f1": float(macro_f1(confusion)),
        }
        names = self.config.id2label
        samples = tuple(
            (
                f"{pair['premise']} | {pair['hypothesis']}",
                str(names[int(gold[row])]),
                str(names[int(predicted[row])]),
            )
            for row, pair in enumerate(
                self.pairs.select(range(min(count, settings.sample_predictions)))
            )
        )
        return Validation(scores, samples)


class LabelWritingTask(TextToTextTask):
    """Natural language inference by writing the label; what is no label is wrong.

    Args:
        tokenizer: Of the model.
        pairs: To validate on, as `load_inference` gives them. Pairs without a label are left out.
        decoding: See `TextToTextTask`.

    Raises:
        ValueError: No pair has a label.
    """

    metrics = ("accuracy", "perplexity")

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        pairs: Dataset,
        *,
        decoding: DecodingSettings = PAPER_DECODING,
    ):
        self.pairs = _labelled(pairs)
        super().__init__(tokenizer, inference_as_text(self.pairs), decoding=decoding)

    def score(self, predictions: list[str], validation: Dataset) -> dict[str, float]:
        """Accuracy in percent."""
        found = labels_from_text(predictions, self.pairs.features["label"].names)
        gold = np.asarray(self.pairs["label"][: len(found)])
        return {"accuracy": 100 * float((np.asarray(found) == gold).mean())}


def classify_pairs(
    accelerator: Accelerator,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Dataset,
    *,
    max_length: int = 256,
) -> np.ndarray:
    """Probabilities of the labels; every process computes a share and gets all of them.

    Args:
        model: As `whole_model` gives it, or one that was loaded.
        tokenizer: The model's own.
        pairs: As `load_inference` gives them; their labels are not looked at.
        max_length: Of a pair in tokens; of a longer one the longer side is cut.

    Returns:
        [N, 3] in the order of `LABELS`, or [N, 2] in that of `TWO_WAY_LABELS`, by what the model
        has: as `evaluate_inference` takes them. The same on any number of processes.

    Raises:
        ValueError: As `encode_inference` and `label_probabilities`.
    """
    encoded, _ = encode_inference(
        pairs, tokenizer, model.config, for_training=False, max_length=max_length
    )
    logits = _shared_logits(accelerator, model, tokenizer, encoded)
    return label_probabilities(logits, model.config)


def write_labels(
    accelerator: Accelerator,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Dataset,
    decoding: DecodingSettings,
    **limits: Any,
) -> np.ndarray:
    """Writes the label of each pair; every process computes a share and gets all labels.

    Args:
        model: As `whole_model` gives it, or one that was loaded.
        pairs: As `load_inference` gives them; their labels are not looked at.
        limits: `max_batch_tokens`, `max_source_tokens` and `window` of `translate`; a longer source
            gets no label.

    Returns:
        [N] positions among the names of the data set's labels, -1 where the text is none.
    """
    sources = list(inference_as_text(pairs)["source"])
    found = translate_texts(accelerator, model, tokenizer, sources, decoding, **limits)
    texts = [hypotheses[0].text for hypotheses in found]
    labels = labels_from_text(texts, pairs.features["label"].names)
    return np.asarray(labels, dtype=np.int64)


def _shared_logits(
    accelerator: Accelerator,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Dataset,
) -> np.ndarray:
    """Logits [N, C] on every process, of which each computes some batches."""
    with accelerator.autocast():
        mine = predict_logits(
            model,
            encoded,
            tokenizer,
            process_index=accelerator.process_index,
            num_processes=accelerator.num_processes,
        )
    # One number and zeros: the sum is exact.
    total = accelerator.reduce(torch.from_numpy(mine).to(accelerator.device), "sum")
    logits: np.ndarray = total.cpu().numpy()
    return logits


def _labelled(pairs: Dataset) -> Dataset:
    """The pairs that have a label.

    Raises:
        ValueError: There are none.
    """
    rows = np.flatnonzero(np.asarray(pairs["label"], dtype=np.int64) >= 0)
    if not len(rows):
        raise ValueError(
            f"none of the {len(pairs)} validation pairs has a label; give a split whose labels "
            "are published"
        )
    return pairs if len(rows) == len(pairs) else pairs.select(rows)
