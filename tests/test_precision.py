"""Training in bf16 and fp16: how far from float32 it may lie, and that nothing is lost below."""

import functools
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vanilla_transformer import (
    VanillaTransformerConfig,
    VanillaTransformerForCausalLM,
    VanillaTransformerForConditionalGeneration,
    VanillaTransformerForMaskedLM,
    VanillaTransformerPreTrainedModel,
)
from vanilla_transformer.modeling_vanilla_transformer import language_model_loss

V = 211
HEADS = [
    VanillaTransformerForConditionalGeneration,
    VanillaTransformerForCausalLM,
    VanillaTransformerForMaskedLM,
]
# Half a unit in the last place: what rounding one number to a format may change, relative to it.
ROUNDING = {torch.bfloat16: 2.0**-9, torch.float16: 2.0**-12}
# A loss that a large update gives one token's share of: below what fp16 holds (6e-8).
LARGE_UPDATE = 25_000_000


def build(
    head: type[VanillaTransformerPreTrainedModel] = VanillaTransformerForConditionalGeneration,
) -> VanillaTransformerPreTrainedModel:
    torch.manual_seed(0)
    config = VanillaTransformerConfig(
        vocab_size=V,
        d_model=64,
        d_ff=128,
        num_heads=4,
        num_encoder_layers=2,
        num_decoder_layers=2,
        dropout=0.0,
        label_smoothing=0.1,
    )
    return head(config).train()


@functools.cache
def batch() -> dict[str, torch.Tensor]:
    """Sentences of 5 to 12 tokens; what is read is what is to be written."""
    ids = torch.randint(5, V, (16, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(12) < (torch.arange(16) % 8 + 5).unsqueeze(1)
    return {
        "input_ids": ids.masked_fill(~mask, 0),
        "attention_mask": mask.long(),
        "labels": ids.masked_fill(~mask, -100),
    }


def step(
    model: VanillaTransformerPreTrainedModel,
    dtype: torch.dtype | None = None,
    scale: float = 1.0,
    num_items_in_batch: int | None = None,
) -> tuple[float, torch.Tensor]:
    """Loss, and all gradients in one vector, with autocast to `dtype` where there is one."""
    model.zero_grad()
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        loss = model(**batch(), num_items_in_batch=num_items_in_batch).loss
    (loss * scale).backward()
    gradients = [p.grad.float().flatten() for p in model.parameters() if p.grad is not None]
    return loss.item(), torch.cat(gradients) / scale


def distance(ours: torch.Tensor, expected: torch.Tensor) -> float:
    return ((ours - expected).norm() / expected.norm()).item()


def bound(dtype: torch.dtype) -> float:
    """How far gradients may lie from those in float32.

    Rounding turns some units of the ReLUs on or off, about the share of them that a number's own
    rounding is, and such a unit's gradient is another one altogether. That outweighs the rounding
    itself: squares of differences add up, so that it is the root of the share. The factor 2 is
    slack for several layers.
    """
    return float(2 * ROUNDING[dtype] ** 0.5)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_rounds_and_nothing_worse(
    head: type[VanillaTransformerPreTrainedModel], implementation: str, dtype: torch.dtype
) -> None:
    model = build(head)
    model.set_attn_implementation(implementation)
    loss, gradients = step(model)
    # A power of two, as every gradient scaler's: nothing is rounded by it.
    ours, our_gradients = step(model, dtype, scale=2.0**12)
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}
    # The loss is a mean over a hundred tokens, whose errors cancel.
    assert ours == pytest.approx(loss, rel=ROUNDING[dtype])
    assert distance(our_gradients, gradients) < bound(dtype)
    # It did compute in `dtype`.
    assert distance(our_gradients, gradients) > ROUNDING[dtype]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_low_precision_train(dtype: torch.dtype) -> None:
    loss, gradients = step(build())
    model = build().to(dtype)
    ours, our_gradients = step(model, scale=2.0**12)
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {dtype}
    assert ours == pytest.approx(loss, rel=ROUNDING[dtype])
    assert distance(our_gradients, gradients) < bound(dtype)
    logits = model.eval()(**batch()).logits
    expected = build().eval()(**batch()).logits
    assert logits.dtype == dtype
    # The forward pass has no such leaps: some 30 roundings one after another, independent of each
    # other, add up like the root of their number. The factor 4 is slack.
    assert distance(logits.float(), expected) < 4 * 30**0.5 * ROUNDING[dtype]


def test_a_bf16_run_follows_the_fp32_run() -> None:
    """30 updates of Adam. What a rounding changes in one is in the weights of all that follow."""

    def run(dtype: torch.dtype | None) -> torch.Tensor:
        model = build()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.9, 0.98), eps=1e-9)
        losses = []
        for _ in range(30):
            losses.append(step(model, dtype)[0])
            optimizer.step()
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        return torch.tensor(losses)

    expected, ours = run(None), run(torch.bfloat16)
    assert expected[-1] < expected[0] / 2
    # Nowhere as far off as a tenth of what one update changes where the curve is steepest.
    steepest = (expected[1:] - expected[:-1]).abs().max().item()
    assert 0 < (ours - expected).abs().max().item() < steepest / 10


def test_the_loss_in_bf16_is_as_exact_as_torch_s() -> None:
    """Against double precision, over 20 draws of logits of unit size."""
    errors = []
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        hidden = torch.randn(1, 400, 64, generator=generator)
        head = nn.Linear(64, V, bias=False)
        head.weight.data = torch.randn(V, 64, generator=generator) / 8
        labels = torch.randint(0, V, (1, 400), generator=generator)
        arguments: dict[str, Any] = {"target": labels.flatten(), "label_smoothing": 0.1}
        exact = F.cross_entropy(
            hidden.double().flatten(0, 1) @ head.weight.double().t(), **arguments
        )
        with torch.autocast("cpu", torch.bfloat16):
            theirs = F.cross_entropy(head(hidden).flatten(0, 1).float(), **arguments)
            ours = language_model_loss(hidden, head, labels, 0.1)
        errors.append([abs(loss.item() - exact.item()) for loss in (ours, theirs)])
    mean_ours, mean_theirs = torch.tensor(errors).mean(dim=0).tolist()
    # What the products in bf16 lose, both lose; torch's sums and softmax are in float32.
    assert mean_theirs > 1e-5
    assert mean_ours == pytest.approx(mean_theirs, rel=5e-3)


# ------------------------------------------------------------------------------ gradient scaler


@pytest.mark.parametrize("head", HEADS)
def test_a_scaled_fp16_update_of_many_tokens_is_the_fp32_update(
    head: type[VanillaTransformerPreTrainedModel],
) -> None:
    """Through torch's own scaler, from its default scale."""
    model = build(head)
    expected = step(model, num_items_in_batch=LARGE_UPDATE)[1]
    # Without a scaler most of it is below fp16's smallest number.
    assert distance(step(model, torch.float16, 1.0, LARGE_UPDATE)[1], expected) > 0.5
    scaler = torch.amp.GradScaler("cpu", init_scale=65_536.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    optimizer.zero_grad()
    with torch.autocast("cpu", torch.float16):
        loss = model(**batch(), num_items_in_batch=LARGE_UPDATE).loss
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    ours = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert distance(ours, expected) < bound(torch.float16)
    before = model.lm_head.weight.detach().clone()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 65_536.0
    assert not torch.equal(model.lm_head.weight, before)
