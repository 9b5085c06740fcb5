"""Validation: loss, BLEU and translations over any number of processes, each sentence once."""

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.batching import TokenBudgetBatchSampler
from ..evaluation import load_metric
from ..generation import DecodingSettings, Hypothesis, TranslationReport, translate
from ..tasks.translation import translation_collator
from .settings import TrainingSettings
from .updates import pair_lengths

# Of a batch in which the validation loss is computed: its logits are held whole.
_LOSS_BATCH_TOKENS = 8192


@dataclass(frozen=True)
class Validation:
    """How good a model is on the validation data.

    Attributes:
        loss: Plain negative log-likelihood, nats per target token.
        perplexity: Its exponential.
        bleu: Of the translations.
        samples: Some of them: source, reference, translation.
    """

    loss: float
    perplexity: float
    bleu: float
    samples: tuple[tuple[str, str, str], ...] = ()

    @property
    def scores(self) -> dict[str, float]:
        """The three figures by name."""
        return {"loss": self.loss, "perplexity": self.perplexity, "bleu": self.bleu}


@contextmanager
def whole_model(accelerator: Accelerator, model: nn.Module) -> Iterator[PreTrainedModel]:
    """The bare model in evaluation mode, whole and not compiled; every process calls it.

    Unwrapped, it computes without talking to other processes, so that each may translate as many
    sentences as it has. Of a sharded model (FSDP2) a whole copy is gathered on every process.
    """
    inner = accelerator.unwrap_model(model)
    if isinstance(inner, FSDPModule):
        inner = _gathered_copy(inner)
    was_training = inner.training
    try:
        # Generation would compile a graph for every length.
        with torch.compiler.set_stance("force_eager"):
            yield inner.eval()
    finally:
        inner.train(was_training)


def _gathered_copy(model: Any) -> PreTrainedModel:
    # `fully_shard` makes a subclass of both.
    cls: Any = next(kind for kind in type(model).__mro__ if not issubclass(kind, FSDPModule))
    with torch.device("meta"):
        copy: PreTrainedModel = cls(model.config)
    tensors = {
        name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        for name, tensor in model.state_dict().items()
    }
    copy.load_state_dict(tensors, assign=True)
    copy.tie_weights()
    copy.generation_config = model.generation_config
    return copy


@torch.no_grad()
def validation_loss(
    accelerator: Accelerator,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Dataset,
) -> float:
    """Plain negative log-likelihood in nats per target token, over all processes.

    Args:
        model: As `whole_model` gives it.
        pairs: Encoded pairs, the same on every process.
    """
    collate = translation_collator(tokenizer)
    longest = max(int(lengths.max()) for lengths in pair_lengths(pairs))
    budget = max(_LOSS_BATCH_TOKENS, longest)
    batches = TokenBudgetBatchSampler(
        *pair_lengths(pairs), max_source_tokens=budget, max_target_tokens=budget, shuffle=False
    )
    # One sum for each batch, added up in the same order whatever process computed it.
    sums = torch.zeros(len(batches), device=accelerator.device)
    for number, rows in enumerate(batches):
        if number % accelerator.num_processes != accelerator.process_index:
            continue
        piece = collate([pairs[row] for row in rows])
        piece = {name: tensor.to(accelerator.device) for name, tensor in piece.items()}
        with accelerator.autocast():
            sums[number] = model(**piece, num_items_in_batch=1).loss
    total = float(accelerator.reduce(sums, "sum").cpu().double().sum())
    return total / int(pair_lengths(pairs)[1].sum())


def translate_texts(
    accelerator: Accelerator,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: list[str],
    decoding: DecodingSettings,
    *,
    report: TranslationReport | None = None,
    **limits: int,
) -> list[list[Hypothesis]]:
    """Translates `sources`, shared out among the processes; every process gets all translations.

    Args:
        model: As `whole_model` gives it.
        report: Filled in for all sources, on every process.
        limits: `max_batch_tokens`, `max_source_tokens` and `window` of `translate`.

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
    skipped = {mine[number - 1] + 1: reason for number, reason in counts.skipped.items()}
    gathered = gather_object([(results, counts.empty, skipped)])
    if report is not None:
        report.lines += len(sources)
        for _, empty, left_out in gathered:
            report.empty += empty
            report.skipped |= left_out
    everything = [pair for results, _, _ in gathered for pair in results]
    return [hypotheses for _, hypotheses in sorted(everything, key=lambda pair: pair[0])]


def validate_model(
    accelerator: Accelerator,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Dataset,
    text: Dataset,
    settings: TrainingSettings,
    decoding: DecodingSettings,
    bleu: dict[str, Any],
) -> Validation:
    """Loss, perplexity and BLEU; every process calls it and gets the same.

    Args:
        model: The model in training, wrapped and sharded as it may be.
        pairs: The validation data encoded, all of them.
        text: Their columns `source` and `target`.
        settings: How many to translate, how to search, how many to show.
        decoding: The run's, whose beam width `settings.validation_beams` replaces.
        bleu: Options of the BLEU metric.
    """
    count = min(len(text), settings.validation_sentences or len(text))
    sources, references = (list(text.select(range(count))[name]) for name in ("source", "target"))
    search = dataclasses.replace(
        decoding, num_beams=settings.validation_beams, num_hypotheses=1, do_sample=False
    )
    with whole_model(accelerator, model) as inner:
        loss = validation_loss(accelerator, inner, tokenizer, pairs)
        found = translate_texts(accelerator, inner, tokenizer, sources, search)
    translations = [hypotheses[0].text for hypotheses in found]
    # `force`: text that is tokenised already is meant to be.
    score = load_metric("bleu", force=True, **bleu).compute(
        predictions=translations, references=references
    )
    samples = zip(sources, references, translations, strict=True)
    return Validation(
        loss,
        math.exp(min(loss, 700)),
        score["score"],
        tuple(samples)[: settings.sample_translations],
    )
