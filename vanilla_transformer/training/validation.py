"""What every validation needs: the bare model, and its loss over any number of processes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from ..data.batching import TokenBudgetBatchSampler
from .task import Task, example_lengths

# Of a batch in which the validation loss is computed: its logits are held whole.
_LOSS_BATCH_TOKENS = 8192


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
    accelerator: Accelerator, model: PreTrainedModel, task: Task, examples: Dataset
) -> float:
    """Plain negative log-likelihood in nats per item, over all processes.

    Args:
        model: As `whole_model` gives it.
        examples: Encoded, with what is to be learned, the same on every process. What the task
            draws at random is the same at every call.
    """
    examples = examples.select_columns(list(task.columns))
    lengths = example_lengths(examples)
    budget = max(_LOSS_BATCH_TOKENS, *(int(side.max()) for side in lengths))
    batches = TokenBudgetBatchSampler(
        *lengths, max_source_tokens=budget, max_target_tokens=budget, shuffle=False
    )
    # Loss and items of each batch, added up in the same order whatever process computed them.
    sums = torch.zeros((2, len(batches)), device=accelerator.device)
    for number, rows in enumerate(batches):
        if number % accelerator.num_processes != accelerator.process_index:
            continue
        batch = task.draw([examples[row] for row in rows], np.random.default_rng(number))
        piece = task.collate(batch)
        piece = {name: tensor.to(accelerator.device) for name, tensor in piece.items()}
        with accelerator.autocast():
            sums[0, number] = model(**piece, num_items_in_batch=1).loss
        sums[1, number] = task.count(batch)
    loss, items = accelerator.reduce(sums, "sum").cpu().double().sum(1).tolist()
    return float(loss / items)
