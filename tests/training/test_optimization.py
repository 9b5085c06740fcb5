"""The schedule and Adam against the formulas, computed here in double precision."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from vanilla_transformer.training.optimization import (
    build_optimizer,
    build_scheduler,
    learning_rate,
)


@pytest.mark.parametrize("update", [1, 2, 100, 3999, 4000, 4001, 100_000])
def test_rate_is_equation_3(update: int) -> None:
    rising = update / (4000 * math.sqrt(4000))
    falling = 1 / math.sqrt(update)
    expected = min(rising, falling) / math.sqrt(512)
    assert learning_rate(update, 512) == pytest.approx(expected, rel=1e-12)
    assert learning_rate(update, 512, factor=3.0) == pytest.approx(3 * expected, rel=1e-12)


def test_rate_peaks_at_the_end_of_warmup() -> None:
    rates = [learning_rate(update, 512, 400) for update in range(1, 2000)]
    assert rates.index(max(rates)) + 1 == 400
    assert max(rates) == pytest.approx((512 * 400) ** -0.5, rel=1e-12)
    # The paper's base model: 7.0e-4 at update 4,000.
    assert learning_rate(4000, 512) == pytest.approx(6.988e-4, rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 512, 4000), r"update \(0\)"),
        ((1, 0, 4000), r"d_model \(0\)"),
        ((1, 512, 0), r"warmup \(0\)"),
    ],
)
def test_rate_refuses_what_has_no_meaning(arguments: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        learning_rate(*arguments)


class Tied(nn.Module):
    """Two names for one matrix, as in the Transformer's embeddings, and a frozen parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.inner = nn.Linear(4, 4)
        self.output = nn.Linear(4, 7, bias=False)
        self.output.weight = self.embedding.weight
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.output(self.inner(self.embedding(tokens)))
        return logits


def test_optimizer_has_the_papers_constants_and_each_parameter_once() -> None:
    model = Tied()
    optimizer = build_optimizer(model)
    (group,) = optimizer.param_groups
    assert group["betas"] == (0.9, 0.98)
    assert group["eps"] == 1e-9
    assert group["weight_decay"] == 0
    assert group["fused"]
    assert [id(parameter) for parameter in group["params"]] == [
        id(model.embedding.weight),
        id(model.inner.weight),
        id(model.inner.bias),
    ]


def test_optimizer_where_no_fused_kernel_exists() -> None:
    with torch.device("meta"):
        model = nn.Linear(2, 2)
    assert not build_optimizer(model).param_groups[0]["fused"]


def test_optimizer_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no trainable parameter"):
        build_optimizer(nn.Dropout())


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_steps_equal_adam_in_double_precision(weight_decay: float) -> None:
    """Algorithm 1 of Kingma and Ba (2015), line by line, at the rates of equation 3."""
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(50))
    holder = nn.Module()
    holder.register_parameter("parameter", parameter)
    optimizer = build_optimizer(holder, weight_decay=weight_decay)
    scheduler = build_scheduler(optimizer, d_model=16, warmup=3)

    theta = parameter.detach().numpy().astype(np.float64)
    m = np.zeros_like(theta)
    v = np.zeros_like(theta)
    for t in range(1, 8):
        # Gradients over many magnitudes, where a misplaced eps would show.
        gradient = torch.randn(50) * 10.0 ** torch.linspace(-9, 1, 50)
        parameter.grad = gradient.clone()
        optimizer.step()
        scheduler.step()

        g = gradient.numpy().astype(np.float64) + weight_decay * theta
        m = 0.9 * m + (1 - 0.9) * g
        v = 0.98 * v + (1 - 0.98) * g**2
        m_hat = m / (1 - 0.9**t)
        v_hat = v / (1 - 0.98**t)
        alpha = 16**-0.5 * min(t**-0.5, t * 3**-1.5)
        theta = theta - alpha * m_hat / (np.sqrt(v_hat) + 1e-9)
        np.testing.assert_allclose(parameter.detach().numpy(), theta, rtol=0, atol=2e-6)


def rates_used(parameter: nn.Parameter, updates: int, optimizer, scheduler) -> list[float]:  # type: ignore[no-untyped-def]
    rates = []
    for _ in range(updates):
        parameter.grad = torch.ones_like(parameter)
        before = parameter.detach().clone()
        optimizer.step()
        scheduler.step()
        # With a constant gradient of 1 Adam moves by the rate itself.
        rates.append((before - parameter).item())
    return rates


def test_the_rates_that_the_optimizer_really_used() -> None:
    parameter = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    holder = nn.Module()
    holder.register_parameter("parameter", parameter)
    optimizer = build_optimizer(holder)
    scheduler = build_scheduler(optimizer, 64, warmup=5, factor=2.0)
    expected = [learning_rate(update, 64, 5, 2.0) for update in range(1, 13)]
    assert rates_used(parameter, 6, optimizer, scheduler) == pytest.approx(expected[:6], rel=1e-6)

    # A new pair that loads the state, by way of JSON, goes on at update 7.
    saved = json.loads(json.dumps(scheduler.state_dict()))
    resumed = build_optimizer(holder)
    resumed_scheduler = build_scheduler(resumed, 64, warmup=5, factor=2.0)
    resumed.load_state_dict(optimizer.state_dict())
    resumed_scheduler.load_state_dict(saved)
    assert rates_used(parameter, 6, resumed, resumed_scheduler) == pytest.approx(
        expected[6:], rel=1e-6
    )


def test_schedule_refuses_an_optimizer_with_a_rate_of_its_own() -> None:
    optimizer = build_optimizer(nn.Linear(2, 2), lr=3e-4)
    with pytest.raises(ValueError, match=r"lr \(0.0003\) must be 1.0"):
        build_scheduler(optimizer, 64, warmup=5)
