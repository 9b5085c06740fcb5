"""Keeps what is made of a model's weights for as long as the model and its weights stay."""

import math
import weakref
from typing import NamedTuple

import torch
from torch import nn
from transformers.activations import ACT2FN

from ..modeling_vanilla_transformer import (
    VanillaTransformerAttention,
    VanillaTransformerDecoder,
    VanillaTransformerDecoderLayer,
    VanillaTransformerDropout,
    VanillaTransformerEncoder,
    VanillaTransformerEncoderLayer,
    VanillaTransformerForConditionalGeneration,
    VanillaTransformerModel,
    VanillaTransformerSegmentEmbedding,
)
from .network import Network
from .weights import Precision

# What `Network` computes. A subclass may compute something else.
_MODULES = frozenset(
    {
        VanillaTransformerAttention,
        VanillaTransformerDecoder,
        VanillaTransformerDecoderLayer,
        VanillaTransformerDropout,
        VanillaTransformerEncoder,
        VanillaTransformerEncoderLayer,
        VanillaTransformerForConditionalGeneration,
        VanillaTransformerModel,
        VanillaTransformerSegmentEmbedding,
        nn.Embedding,
        nn.LayerNorm,
        nn.Linear,
        nn.ModuleList,
    }
)
# Implementations of attention that compute what SDPA computes; another may be of the caller's own.
_ATTENTIONS = ("sdpa", "eager")

_networks: weakref.WeakKeyDictionary[nn.Module, dict[Precision, "_Known"]] = (
    weakref.WeakKeyDictionary()
)


class _Known(NamedTuple):
    """A network, and what its model's parameters were when it was made.

    Attributes:
        versions: Of each parameter the address and torch's count of its changes.
        sample: Some of their numbers.
        storages: What lay at the addresses; held, so that nothing else comes to lie there.
        network: The model on weights that are ready for decoding.
    """

    versions: list[tuple[int, int]]
    sample: torch.Tensor
    storages: list[torch.Tensor]
    network: Network


def obstacle(model: nn.Module) -> str | None:
    """What keeps `Network` from standing in for the model; None where nothing does."""
    if type(model) is not VanillaTransformerForConditionalGeneration:
        return f"the model is a {type(model).__name__}"
    modules = _MODULES | {type(ACT2FN[model.config.activation])}
    for name, module in model.named_modules():
        if type(module) not in modules:
            return f"{name} is a {type(module).__name__}"
        if "forward" in module.__dict__ or module._compiled_call_impl is not None:
            return f"{name or 'the model'} has a forward of its own"
        # transformers' own hooks stay once something was recorded, and then do nothing.
        if any(
            not getattr(hook, "__module__", "").startswith("transformers.")
            for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        ):
            return f"{name or 'the model'} has a hook"
        if module.training:
            return f"{name or 'the model'} is in training mode"
    if model.config._attn_implementation not in _ATTENTIONS:
        return f"attention is {model.config._attn_implementation!r}"
    if getattr(model, "_is_fsdp_managed_module", False):
        return "the parameters are sharded"
    for parameter in model.parameters():
        if type(parameter) is not nn.Parameter or not parameter.numel():
            return f"a parameter is a {type(parameter).__name__} of {parameter.numel()} numbers"
        if parameter.dtype != torch.float32 or parameter.device.type != "cpu":
            return f"a parameter is {parameter.dtype} on {parameter.device}, not float32 on a CPU"
    if torch.is_autocast_enabled("cpu"):
        return "autocast is on"
    if torch.compiler.is_compiling():
        return "a graph is being compiled"
    return None


def network_of(
    model: VanillaTransformerForConditionalGeneration, precision: Precision = "model"
) -> Network:
    """The model on weights that are ready for decoding, made once and again when they change.

    A change is noticed by torch's count of the changes of each parameter, by where it lies, and,
    since writing to `.data` or through numpy is not counted, by a sample of its numbers that no
    change of a whole row or column spares. Such a change of a few numbers goes unseen: write to
    the parameter itself under `torch.no_grad()`, or call `release`.

    Args:
        model: One without an `obstacle`.
        precision: Of its linear layers.

    Raises:
        ValueError: int8 where it cannot be had.
    """
    networks = _networks.setdefault(model, {})
    versions, sample = _fingerprint(model)
    known = networks.get(precision)
    if known is not None:
        if known.versions == versions and torch.equal(known.sample, sample):
            return known.network
        # Before the next one takes as much memory.
        del networks[precision], known
    with torch.inference_mode():
        network = Network(model, precision)
    storages = [parameter.detach() for parameter in model.parameters()]
    networks[precision] = _Known(versions, sample, storages, network)
    return network


def release(model: nn.Module) -> None:
    """Frees what was made of the model's weights; the next translation makes it again."""
    _networks.pop(model, None)


def _fingerprint(model: nn.Module) -> tuple[list[tuple[int, int]], torch.Tensor]:
    """What tells whether parameters are still the same: `_Known.versions` and `_Known.sample`.

    Takes 2 or 3 ms for the base model, in which it writes a sixth of a token.
    """
    versions, samples = [], []
    with torch.inference_mode():
        for parameter in model.parameters():
            # Parameters made in inference mode count nothing.
            version = 0 if parameter.is_inference() else parameter._version
            versions.append((parameter.data_ptr(), version))
            samples.append(parameter.detach().reshape(-1)[:: _stride(parameter.shape)])
        return versions, torch.cat(samples)


def _stride(shape: torch.Size) -> int:
    """The largest step through a matrix, row after row, that meets every row and every column."""
    if len(shape) == 1:
        return 1
    columns = shape[1]
    return next(n for n in range(min(shape), 0, -1) if math.gcd(n, columns) == 1)
