"""Fully sharded training (FSDP2) of a model whose embeddings are tied."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel


def shard_model(accelerator: Accelerator, model: PreTrainedModel) -> None:
    """Shards `model` in place if FSDP2 was chosen; call it before the optimizer is built.

    Each layer is a unit whose weights are gathered when it is its turn. All else, above all the one
    matrix of both embeddings and the output layer (paper 3.4), belongs to the model as a whole.
    `accelerator.prepare` leaves a sharded model as it is; on its own it would make a unit of an
    embedding and the output layer, and fail where a third module is tied to them.
    """
    if not accelerator.is_fsdp2:
        return
    plugin = accelerator.state.fsdp_plugin
    options = {
        "reshard_after_forward": plugin.reshard_after_forward,
        "offload_policy": plugin.cpu_offload,
        # Accelerate's would round to 16 bits what is logged as the loss, and add gradients up so.
        "mp_policy": dataclasses.replace(
            plugin.mixed_precision_policy or MixedPrecisionPolicy(),
            reduce_dtype=torch.float32,
            output_dtype=None,
        ),
    }
    layers = set(model._no_split_modules or ())
    for module in model.modules():
        if type(module).__name__ in layers:
            fully_shard(module, **options)
    # Its weights are needed until the end of the forward pass, which is where the backward begins.
    fully_shard(model, **{**options, "reshard_after_forward": False})
    # The layers' classes have new names now: Accelerate would look for them in vain.
    plugin.auto_wrap_policy = None
