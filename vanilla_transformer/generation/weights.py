"""Linear layers made ready for decoding: the same matrices times a few rows, thousands of times.

A product takes `[rows, in]` and gives `[rows, out]`, bias and activation included. Three kinds:

- `PlainProduct` is `F.linear`, anywhere and in any type.
- `PackedProduct` keeps the matrix in the layout that oneDNN's kernels read. Between 2 and 64 rows
  they need 0.5 to 0.8 of the time of `F.linear`, which lays out the matrix anew each time. The sums
  are the same up to their order.
- `Int8Product` keeps 8 bits a weight and rounds its input to 8 bits too: a quarter of the time and
  of the memory, and other numbers. Each output dimension has a scale of its own; an input has one
  scale for all its rows, so that a sentence's result depends a little on its neighbours'.

The last two are built from private operators of torch. Where these are missing, or do not compute
what they did when this was written, float32 products are plain and int8 ones are refused.
"""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch.nn import functional as F

Product = Callable[[torch.Tensor], torch.Tensor]
# As the model has them, or 8 bits each.
Precision = Literal["model", "int8"]

# By the config's name: torch's function and what oneDNN calls it, as a name and a variant.
ACTIVATIONS: dict[str, tuple[Product, str, str]] = {
    "relu": (F.relu, "relu", ""),
    "swish": (F.silu, "swish", ""),
    "gelu": (F.gelu, "gelu", "none"),
}
# The layout does not depend on the number of rows it is announced for.
_ANNOUNCED_ROWS = 64


class PlainProduct:
    """`F.linear`, then the activation."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, activation: str | None):
        self.weight, self.bias = weight, bias
        self.activation = None if activation is None else ACTIVATIONS[activation][0]

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """`[rows, in]` to `[rows, out]`."""
        output = F.linear(rows, self.weight, self.bias)
        return output if self.activation is None else self.activation(output)


class PackedProduct:
    """oneDNN's product with a matrix in its own layout; float32 on a CPU."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, activation: str | None):
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _ANNOUNCED_ROWS)
        self.bias = None if bias is None else bias.detach()
        self.activation, self.variant = (
            ("none", "") if activation is None else ACTIVATIONS[activation][1:]
        )
        self.linear: Any = torch.ops.mkldnn._linear_pointwise.default

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """`[rows, in]` to `[rows, out]`."""
        output: torch.Tensor = self.linear(
            rows, self.weight, self.bias, self.activation, [], self.variant
        )
        return output


class Int8Product:
    """torch's dynamically quantised product; on a CPU."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, activation: str | None):
        weight = weight.detach()
        scales = weight.abs().amax(dim=1).double().div_(127).clamp_min_(1e-12)
        zeros = torch.zeros(len(scales), dtype=torch.long)
        with warnings.catch_warnings():
            # torch is to lose these tensors one day; `_works` sees when.
            warnings.filterwarnings("ignore", "torch.quantize_per_tensor", UserWarning)
            quantized = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
        self.packed = torch.ops.quantized.linear_prepack(
            quantized, None if bias is None else bias.detach()
        )
        is_relu = activation == "relu"
        operators = torch.ops.quantized
        self.linear: Any = operators.linear_relu_dynamic if is_relu else operators.linear_dynamic
        self.activation = None if activation is None or is_relu else ACTIVATIONS[activation][0]
        # Pairs of products are summed in 16 bits where the processor cannot do otherwise.
        self.reduce_range = not _sums_exactly()

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """`[rows, in]` to `[rows, out]`."""
        output: torch.Tensor = self.linear(rows, self.packed, self.reduce_range)
        return output if self.activation is None else self.activation(output)


def make_product(
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor | None],
    precision: Precision,
    activation: str | None = None,
) -> Product:
    """One product for one or several linear layers of the same input; outputs side by side.

    Args:
        weights: `[out, in]` each, on one device and of one type.
        biases: `[out]` each, or None; all or none are None.
        precision: `"model"`: the numbers as they are, of whatever type. `"int8"`: rounded.
        activation: Of the config; applied to the output.

    Raises:
        ValueError: int8 where it cannot be had.
    """
    weight = weights[0] if len(weights) == 1 else torch.cat(list(weights))
    given = [bias for bias in biases if bias is not None]
    bias = None if not given else given[0] if len(given) == 1 else torch.cat(given)
    if precision == "int8":
        if weight.device.type != "cpu" or weight.dtype != torch.float32 or not _works(Int8Product):
            raise ValueError(
                f"precision='int8' needs a float32 model on a CPU and a torch with quantised "
                f"linear layers; here are {weight.dtype} on {weight.device} and torch "
                f"{torch.__version__}; try precision='model', or model.float().cpu()"
            )
        return Int8Product(weight, bias, activation)
    if (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and torch.backends.mkldnn.enabled
        and _works(PackedProduct)
    ):
        return PackedProduct(weight, bias, activation)
    return PlainProduct(weight, bias, activation)


@functools.cache
def _works(kind: type[PackedProduct] | type[Int8Product]) -> bool:
    """Whether private operators do what `F.linear` does, at all activations and a few sizes."""
    tolerance = 1e-5 if kind is PackedProduct else 0.05
    generator = torch.Generator().manual_seed(0)
    try:
        for rows, inputs, outputs in ((1, 8, 24), (3, 40, 17), (33, 64, 96)):
            weight = torch.randn(outputs, inputs, generator=generator) / inputs**0.5
            bias = torch.randn(outputs, generator=generator)
            example = torch.randn(rows, inputs, generator=generator)
            for activation in (None, *ACTIVATIONS):
                for given in (bias, None):
                    found = kind(weight, given, activation)(example)
                    wanted = PlainProduct(weight, given, activation)(example)
                    if not torch.allclose(found, wanted, rtol=tolerance, atol=tolerance):
                        return False
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False
    return True


def _sums_exactly() -> bool:
    """Whether 8-bit products are summed in 32 bits (AVX512-VNNI); no where torch does not tell."""
    is_supported = getattr(torch.cpu, "_is_vnni_supported", None)
    return bool(is_supported and is_supported())
