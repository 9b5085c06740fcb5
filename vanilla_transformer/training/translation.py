"""Translation as a run learns it: pairs of texts, scored with BLEU while it trains."""

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..evaluation import load_metric
from ..generation import (
    PAPER_DECODING,
    DecodingSettings,
    Hypothesis,
    TranslationReport,
    release,
    translate,
)
from ..tasks.translation import encode_pairs, translation_collator
from .settings import TrainingSettings
from .task import Task, Validation
from .validation import validation_loss, whole_model


class TextToTextTask(Task):
    """Any task in which the model reads one text and writes another.

    Args:
        tokenizer: Of the model.
        validation: Columns `source` and `target`; the target is the text expected.
        decoding: Stored in the model; with the beam width of the settings for validation.

    Raises:
        ValueError: There is no validation text.
    """

    item = "target tokens"
    columns = ("input_ids", "labels")
    can_be_streamed = True

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        validation: Dataset,
        *,
        decoding: DecodingSettings = PAPER_DECODING,
    ):
        if not len(validation):
            raise ValueError(
                "there is no text to validate on; give a validation split that has some"
            )
        self.tokenizer, self.validation, self.decoding = tokenizer, validation, decoding
        self.validation_pairs, _ = encode_pairs(validation, tokenizer, max_length=None)
        self._collate = translation_collator(tokenizer)

    def prepare(self, model: PreTrainedModel) -> None:
        """Stores the decoding in the generation config."""
        for name, value in self.decoding.generation_arguments().items():
            setattr(model.generation_config, name, value)

    def count(self, batch: Sequence[dict[str, Any]]) -> int:
        """Target tokens, `</s>` included."""
        return sum(len(pair["labels"]) for pair in batch)

    def idle(self, example: dict[str, Any]) -> dict[str, Any]:
        """The pair with its target ignored."""
        return {**example, "labels": [-100] * len(example["labels"])}

    def collate(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """As `translation_collator`."""
        return dict(self._collate(examples))

    def padding(self, piece: dict[str, torch.Tensor]) -> tuple[int, int]:
        """Of source and target together."""
        filled, padded = super().padding(piece)
        return filled + int((piece["labels"] != -100).sum()), padded + piece["labels"].numel()

    @abstractmethod
    def score(self, predictions: list[str], validation: Dataset) -> dict[str, float]:
        """The `metrics` but for the perplexity.

        Args:
            predictions: One for each row of `validation`.
            validation: As many rows of the validation data as were looked at, with all columns.
        """

    def validate(
        self, accelerator: Accelerator, model: nn.Module, settings: TrainingSettings
    ) -> Validation:
        """Loss and perplexity on all pairs, the other scores on as many as the settings say."""
        count = min(len(self.validation), settings.validation_examples or len(self.validation))
        text = self.validation.select(range(count))
        sources, references = list(text["source"]), list(text["target"])
        search = dataclasses.replace(
            self.decoding, num_beams=settings.validation_beams, num_hypotheses=1, do_sample=False
        )
        with whole_model(accelerator, model) as inner:
            loss = validation_loss(accelerator, inner, self, self.validation_pairs)
            found = translate_texts(accelerator, inner, self.tokenizer, sources, search)
        predictions = [hypotheses[0].text for hypotheses in found]
        scores = {"loss": loss, "perplexity": math.exp(min(loss, 700))}
        samples = tuple(zip(sources, references, predictions, strict=True))
        return Validation(
            scores | self.score(predictions, text), samples[: settings.sample_predictions]
        )


class TranslationTask(TextToTextTask):
    """Translation, scored with sacreBLEU.

    Args:
        bleu: Options of the BLEU metric, such as `tokenize` and `lowercase`.
    """

    metrics = ("bleu", "perplexity")

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        validation: Dataset,
        *,
        decoding: DecodingSettings = PAPER_DECODING,
        bleu: dict[str, Any] | None = None,
    ):
        super().__init__(tokenizer, validation, decoding=decoding)
        self.bleu = bleu or {}

    def score(self, predictions: list[str], validation: Dataset) -> dict[str, float]:
        """BLEU."""
        # `force`: text that is tokenised already is meant to be.
        metric = load_metric("bleu", force=True, **self.bleu)
        found = metric.compute(predictions=predictions, references=list(validation["target"]))
        return {"bleu": found["score"]}


def translate_texts(
    accelerator: Accelerator,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: list[str],
    decoding: DecodingSettings,
    *,
    report: TranslationReport | None = None,
    **limits: Any,
) -> list[list[Hypothesis]]:
    """Translates `sources`, shared out among the processes; every process gets all translations.

    Args:
        model: As `whole_model` gives it.
        report: Filled in for all sources, on every process.
        limits: `max_batch_tokens`, `max_source_tokens`, `window` and `precision` of `translate`.

    Returns:
        Exactly one list of hypotheses for each source, in their order.
    """
    mine = range(accelerator.process_index, len(sources), accelerator.num_processes)
    counts = TranslationReport()
    with accelerator.autocast():
        found = translate(
            model, tokenizer, [sources[i] for i in mine], decoding, report=counts, **limits
        )
        results = list(zip(mine, found, strict=True))
    # Training goes on with other weights.
    release(model)
    skipped = {mine[number - 1] + 1: reason for number, reason in counts.skipped.items()}
    gathered = gather_object([(results, counts.empty, skipped)])
    if report is not None:
        report.lines += len(sources)
        for _, empty, left_out in gathered:
            report.empty += empty
            report.skipped |= left_out
    everything = [pair for results, _, _ in gathered for pair in results]
    return [hypotheses for _, hypotheses in sorted(everything, key=lambda pair: pair[0])]
