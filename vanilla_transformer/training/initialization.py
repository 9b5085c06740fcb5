"""Starts for small models and little data that the paper did not need."""

import torch
from torch import nn

from ..modeling_vanilla_transformer import VanillaTransformerAttention


@torch.no_grad()
def align_keys_with_queries(model: nn.Module, correlation: float) -> None:
    """Lets every self-attention begin by looking for tokens like the one that looks.

    With random W^Q and W^K a token attends to all others alike, and has to learn from scratch
    that equal words belong together, which tasks about two texts come down to. Here each W^K
    becomes `correlation` W^Q + sqrt(1 - correlation^2) W^K, of the same variance, so that
    W^Q W^K^T is near a multiple of the identity: one half of mimetic initialisation (Trockman and
    Kolter 2023, "Mimetic Initialization of Self-Attention Layers"), which found that trained
    Transformers look so. Encoder-decoder attention, between two vocabularies, stays as it is.

    Args:
        model: Freshly initialised; changed in place.
        correlation: Between 0, which changes nothing, and 1.

    Raises:
        ValueError: `correlation` lies outside.
    """
    if not 0.0 <= correlation <= 1.0:
        raise ValueError(
            f"correlation ({correlation}) of keys with queries must lie between 0 and 1; "
            "try 0.9, or 0 to leave them random"
        )
    for name, module in model.named_modules():
        if isinstance(module, VanillaTransformerAttention) and name.endswith("self_attn"):
            keys, queries = module.k_proj.weight, module.q_proj.weight
            keys.mul_((1.0 - correlation**2) ** 0.5).add_(queries, alpha=correlation)
