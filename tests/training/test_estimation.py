"""What is said of a run before it starts, against what torch counts and keeps when it runs."""

import dataclasses
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vanilla_transformer import VanillaTransformerConfig, VanillaTransformerForConditionalGeneration
from vanilla_transformer.training.estimation import (
    CorpusSize,
    Shape,
    activation_bytes,
    count_parameters,
    estimate_memory,
    estimate_run,
    training_flops,
)
from vanilla_transformer.training.settings import TrainingSettings

SENTENCES, SOURCE, TARGET, VOCABULARY = 16, 40, 30, 500
SHAPE = Shape(SENTENCES * SOURCE, SENTENCES * TARGET, SOURCE, TARGET)
BASE = VanillaTransformerConfig(vocab_size=37_000)


def config_of(**changes: Any) -> VanillaTransformerConfig:
    arguments: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "d_model": 64,
        "d_ff": 256,
        "num_heads": 4,
        "num_encoder_layers": 3,
        "num_decoder_layers": 2,
        "dropout": 0.0,
    }
    return VanillaTransformerConfig(**{**arguments, **changes})


def run_once(config: VanillaTransformerConfig, attention: str) -> tuple[int, int]:
    """FLOPs that torch counts in a forward and backward pass, and bytes kept between them."""
    model = VanillaTransformerForConditionalGeneration(config).train()
    model.set_attn_implementation(attention)
    input_ids = torch.randint(5, VOCABULARY, (SENTENCES, SOURCE))
    labels = torch.randint(5, VOCABULARY, (SENTENCES, TARGET))
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        # Tensors that share memory count once, and are held so that it is not given out again.
        address = tensor.untyped_storage().data_ptr()
        if address not in weights:
            kept[address] = tensor
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with FlopCounterMode(display=False) as counter, hooks:
        model(
            input_ids=input_ids, attention_mask=torch.ones_like(input_ids), labels=labels
        ).loss.backward()
    # The counter does not know `addmm_`, by which the output layer sums up its weights' gradient.
    uncounted = 2 * SHAPE.target_tokens * config.d_model * VOCABULARY
    size = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    return int(counter.get_total_flops() + uncounted), size


@pytest.mark.parametrize(
    "changes",
    [{}, {"d_k": 8, "d_v": 32}, {"decoder_d_ff": 64}, {"num_encoder_layers": 1}, {"d_ff": 32}],
    ids=str,
)
def test_flops_are_those_that_torch_counts(changes: dict[str, Any]) -> None:
    config = config_of(**changes)
    # Written out: of SDPA on a processor torch counts nothing.
    counted, _ = run_once(config, "eager")
    assert training_flops(config, SHAPE) == pytest.approx(counted, rel=0.005)


@pytest.mark.parametrize(
    "changes", [{}, {"dropout": 0.1}, {"activation": "swish"}, {"d_k": 32, "d_v": 32}], ids=str
)
def test_activations_are_what_the_forward_pass_keeps(changes: dict[str, Any]) -> None:
    config = config_of(**changes)
    _, kept = run_once(config, "sdpa")
    # The loss keeps the gradient of the output matrix.
    kept -= 4 * VOCABULARY * config.d_model
    estimated = activation_bytes(config, SHAPE, mask_bytes=4)
    assert estimated == pytest.approx(kept, rel=0.1)


def test_the_base_model_costs_what_its_dimensions_say() -> None:
    # By hand for one target token with one source token beside it and no attention scores: the
    # encoder's 6 (8 d^2 + 4 d d_ff), the decoder's 6 (16 d^2 + 4 d d_ff), the output layer's 2 d V.
    d, d_ff, vocabulary = 512, 2048, 37_000
    forward = 6 * (8 * d * d + 4 * d * d_ff) + 6 * (16 * d * d + 4 * d * d_ff) + 2 * d * vocabulary
    assert training_flops(BASE, Shape(1, 1, 0, 0)) == 3 * forward
    assert count_parameters(BASE) == 63_045_632
    # And with sentences of 30 tokens the paper's 100,000 updates are about an exaflop.
    costs = estimate_run(BASE, TrainingSettings())
    assert costs.total_flops == 100_000 * costs.update_flops
    assert 0.9e18 < costs.total_flops < 1.1e18


def test_activation_checkpointing_trades_memory_for_a_third_more_work() -> None:
    plain = training_flops(BASE, SHAPE)
    again = training_flops(BASE, SHAPE, activation_checkpointing=True)
    assert 1.2 < again / plain < 4 / 3
    settings = TrainingSettings()
    saving = dataclasses.replace(settings, activation_checkpointing=True)
    sizes = [estimate_memory(BASE, s, SHAPE).activations for s in (settings, saving)]
    assert sizes[1] < sizes[0] / 3


def test_an_update_is_the_same_on_any_number_of_processes() -> None:
    settings = TrainingSettings(accumulation_steps=2)
    alone, shared = (estimate_run(BASE, settings, processes=n) for n in (1, 8))
    assert shared.update == alone.update
    assert shared.update_flops == alone.update_flops
    assert alone.piece.target_tokens == settings.max_target_tokens / 2
    assert shared.piece.target_tokens == settings.max_target_tokens / 16
    assert shared.memory.activations == pytest.approx(alone.memory.activations / 8)
    # DDP keeps gradients twice; FSDP2 shares everything out.
    assert shared.memory.gradients == 2 * alone.memory.gradients == 8 * alone.parameters
    sharded = estimate_run(BASE, settings, processes=8, is_sharded=True).memory
    assert sharded.optimizer == alone.memory.optimizer / 8
    assert sharded.gradients == alone.memory.gradients / 8


def test_half_precision_and_a_moving_average_count_in_memory() -> None:
    plain = estimate_memory(BASE, TrainingSettings(), SHAPE)
    assert plain.weights == 4 * 63_045_632
    assert plain.optimizer == 2 * plain.weights
    assert plain.average == 0
    half = estimate_memory(BASE, TrainingSettings(precision="bf16", ema_decay=0.999), SHAPE)
    assert half.weights == 1.5 * plain.weights
    assert half.average == plain.weights
    assert 0.5 < half.activations / plain.activations < 0.8
    assert half.total == sum(vars(half).values())


def test_epochs_follow_from_the_side_that_fills_its_budget_first() -> None:
    settings = TrainingSettings(updates=1000, max_source_tokens=1000, max_target_tokens=1000)
    corpus = CorpusSize(pairs=10_000, source_tokens=100_000, target_tokens=190_000, is_counted=True)
    costs = estimate_run(BASE, settings, corpus=corpus)
    # 190 full batches of targets, each of them 95% full.
    assert costs.updates_per_epoch == pytest.approx(200)
    assert costs.epochs == pytest.approx(5)
    assert costs.update.target_tokens == pytest.approx(1000)
    assert costs.update.source_tokens == pytest.approx(100_000 / 190)
    assert (costs.update.source_length, costs.update.target_length) == (10, 19)


def test_a_corpus_of_less_than_a_batch_is_one_update() -> None:
    corpus = CorpusSize(pairs=10, source_tokens=100, target_tokens=200, is_counted=True)
    costs = estimate_run(BASE, TrainingSettings(updates=7), corpus=corpus)
    assert (costs.updates_per_epoch, costs.epochs) == (1, 7)
    assert costs.update.source_tokens == pytest.approx(100)
    assert costs.update.target_tokens == pytest.approx(200)


def test_without_a_corpus_epochs_are_unknown() -> None:
    costs = estimate_run(BASE, TrainingSettings())
    assert costs.epochs is costs.updates_per_epoch is None
    assert costs.update.source_tokens == costs.update.target_tokens == 25_000
