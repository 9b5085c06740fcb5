"""Adam and the learning-rate schedule of the paper (section 5.3)."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

# Where torch.optim.Adam has a fused kernel. Fused, a step of the base model takes 51 ms on
# 2 cores; the default takes 219 ms.
_FUSED_DEVICES = frozenset({"cpu", "cuda", "mps", "xpu"})


def learning_rate(update: int, d_model: int, warmup: int = 4000, factor: float = 1.0) -> float:
    """Rate for one optimizer update (paper 5.3, eq. 3).

    factor * d_model^-0.5 * min(update^-0.5, update * warmup^-1.5): linear up to `warmup`, where it
    peaks at factor / sqrt(d_model * warmup), then falling with the square root.

    `update` starts at 1 and counts optimizer updates, not micro-batches.
    `factor` is 1 in the paper; small models and small data are often trained with another.
    Raises: ValueError if `update`, `d_model` or `warmup` < 1.
    """
    if update < 1:
        raise ValueError(f"update ({update}) must be 1 or more; the first update is number 1")
    if d_model < 1:
        raise ValueError(f"d_model ({d_model}) must be 1 or more")
    if warmup < 1:
        raise ValueError(f"warmup ({warmup}) must be 1 or more; 1 is no warm-up")
    return factor * d_model**-0.5 * min(update**-0.5, update * warmup**-1.5)


def build_optimizer(
    model: nn.Module,
    *,
    lr: float = 1.0,
    betas: tuple[float, float] = (0.9, 0.98),
    eps: float = 1e-9,
    weight_decay: float = 0.0,
) -> torch.optim.Adam:
    """Adam with the paper's constants over all trainable parameters, tied ones once.

    Args:
        model: its parameters must be on the device where they are trained, or move there in
            place (as `Accelerator.prepare` does).
        lr: 1.0 because `build_scheduler` gives the whole rate as its multiple. Give another one
            only to train at a constant rate, without that scheduler.
        betas: decay of the two moments (paper 5.3).
        eps: added to the root of the second moment (paper 5.3).
        weight_decay: L2 penalty added to the gradient; the paper uses none.

    Raises: ValueError if nothing is trainable.
    """
    # `parameters()` yields a tied parameter once.
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError(
            "the model has no trainable parameter; set requires_grad=True on those to train"
        )
    fused = all(
        parameter.device.type in _FUSED_DEVICES and parameter.is_floating_point()
        for parameter in parameters
    )
    return torch.optim.Adam(
        parameters, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=fused
    )


def build_scheduler(
    optimizer: torch.optim.Optimizer, d_model: int, warmup: int = 4000, factor: float = 1.0
) -> LambdaLR:
    """Schedule that sets `learning_rate(n, ...)` for update n, the first being n = 1.

    Call `step()` once after each optimizer update. Do not pass it through
    `Accelerator.prepare`, which would step it once for every process.

    Raises: ValueError if the optimizer's base rate is not 1.0.
    """
    for group in optimizer.param_groups:
        base = group.get("initial_lr", group["lr"])
        if base != 1.0:
            raise ValueError(
                f"the optimizer's lr ({base}) must be 1.0, because the schedule gives the whole "
                f"rate; build the optimizer with lr=1.0 and scale the schedule with factor={base}"
            )
    # LambdaLR counts from 0 and sets the rate of count 0 when it is built.
    return LambdaLR(optimizer, lambda count: learning_rate(count + 1, d_model, warmup, factor))
