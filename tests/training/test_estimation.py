"""What is said of a run before it starts, against what torch counts and keeps when it runs."""

import dataclasses
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from vanilla_transformer import (
    VanillaTransformerConfig,
    VanillaTransformerForConditionalGeneration,
    VanillaTransformerForMaskedLM,
    VanillaTransformerForQuestionAnswering,
    VanillaTransformerForSequenceClassification,
)
from vanilla_transformer.tokenization import train_tokenizer
from vanilla_transformer.training.estimation import (
    CorpusSize,
    Shape,
    activation_bytes,
    count_parameters,
    estimate_memory,
    estimate_run,
    estimate_tokens,
    measure_pairs,
    training_flops,
)
from vanilla_transformer.training.settings import TrainingSettings

SENTENCES, SOURCE, TARGET, VOCABULARY = 16, 40, 30, 500
SHAPE = Shape(SENTENCES * SOURCE, SENTENCES * TARGET, SOURCE, TARGET)
# Of tasks that write no text.
EXAMPLES = Shape(SENTENCES * SOURCE, SENTENCES, SOURCE, 1)
MASKED = 6
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


def run_once(
    config: VanillaTransformerConfig,
    attention: str,
    model_class: type[PreTrainedModel] = VanillaTransformerForConditionalGeneration,
) -> tuple[int, int]:
    """FLOPs that torch counts in a forward and backward pass, and bytes kept between them."""
    model = model_class(config).train()
    model.set_attn_implementation(attention)
    input_ids = torch.randint(5, VOCABULARY, (SENTENCES, SOURCE))
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        # Tensors that share memory count once, and are held so that it is not given out again.
        address = tensor.untyped_storage().data_ptr()
        if address not in weights:
            kept[address] = tensor
        return tensor

    # The counter does not know `addmm_`, by which the output layer sums up its weights' gradient.
    uncounted = 0
    labels: dict[str, torch.Tensor]
    if model_class is VanillaTransformerForConditionalGeneration:
        labels = {"labels": torch.randint(5, VOCABULARY, (SENTENCES, TARGET))}
        uncounted = 2 * SHAPE.target_tokens * config.d_model * VOCABULARY
    elif model_class is VanillaTransformerForMaskedLM:
        labels = {"labels": torch.full((SENTENCES, SOURCE), -100)}
        labels["labels"][:, :MASKED] = 7
        uncounted = 2 * SENTENCES * MASKED * config.d_model * VOCABULARY
    elif model_class is VanillaTransformerForQuestionAnswering:
        input_ids[:, [10, -1]] = config.eos_token_id
        labels = dict.fromkeys(("start_positions", "end_positions"), torch.full((SENTENCES,), 20))
    else:
        labels = {"labels": torch.ones(SENTENCES, dtype=torch.long)}
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with FlopCounterMode(display=False) as counter, hooks:
        model(
            input_ids=input_ids, attention_mask=torch.ones_like(input_ids), **labels
        ).loss.backward()
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
    estimated = activation_bytes(config, SHAPE, on_gpu=False)
    assert estimated == pytest.approx(kept, rel=0.1)


@pytest.mark.parametrize(
    ("model_class", "changes"),
    [
        (VanillaTransformerForMaskedLM, {}),
        (VanillaTransformerForQuestionAnswering, {}),
        (VanillaTransformerForQuestionAnswering, {"has_no_answer": True}),
        (VanillaTransformerForSequenceClassification, {"pooling": "mean"}),
        (VanillaTransformerForSequenceClassification, {"pooling": "max"}),
        (VanillaTransformerForSequenceClassification, {"pooling": "decoder"}),
    ],
    ids=str,
)
def test_other_heads_cost_what_torch_counts(
    model_class: type[PreTrainedModel], changes: dict[str, Any]
) -> None:
    config = config_of(**changes)
    assert count_parameters(config, model_class) == model_class(config).num_parameters()
    counted, _ = run_once(config, "eager", model_class)
    flops = training_flops(config, EXAMPLES, model_class, masked_share=MASKED / SOURCE)
    assert flops == pytest.approx(counted, rel=0.005)
    _, kept = run_once(config, "sdpa", model_class)
    if model_class is VanillaTransformerForMaskedLM:
        kept -= 4 * VOCABULARY * config.d_model
    estimated = activation_bytes(config, EXAMPLES, model_class, on_gpu=False)
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
    corpus = CorpusSize(
        examples=10_000, source_tokens=100_000, target_tokens=190_000, is_counted=True
    )
    costs = estimate_run(BASE, settings, corpus=corpus)
    # 190 full batches of targets, each of them 95% full.
    assert costs.updates_per_epoch == pytest.approx(200)
    assert costs.epochs == pytest.approx(5)
    assert costs.update.target_tokens == pytest.approx(1000)
    assert costs.update.source_tokens == pytest.approx(100_000 / 190)
    assert (costs.update.source_length, costs.update.target_length) == (10, 19)


def test_a_corpus_of_less_than_a_batch_is_one_update() -> None:
    corpus = CorpusSize(examples=10, source_tokens=100, target_tokens=200, is_counted=True)
    costs = estimate_run(BASE, TrainingSettings(updates=7), corpus=corpus)
    assert (costs.updates_per_epoch, costs.epochs) == (1, 7)
    assert costs.update.source_tokens == pytest.approx(100)
    assert costs.update.target_tokens == pytest.approx(200)


def test_without_a_corpus_epochs_are_unknown() -> None:
    costs = estimate_run(BASE, TrainingSettings())
    assert costs.epochs is costs.updates_per_epoch is None
    assert costs.update.source_tokens == costs.update.target_tokens == 25_000


def test_without_target_text_the_target_budget_is_one_of_examples() -> None:
    settings = TrainingSettings(updates=1000, max_source_tokens=1000, max_target_tokens=20)
    head = VanillaTransformerForSequenceClassification
    corpus = CorpusSize(examples=2000, source_tokens=40_000, target_tokens=2000, is_counted=True)
    costs = estimate_run(BASE, settings, model_class=head, corpus=corpus)
    # 100 batches of 20 examples, not 40 of 1000 tokens.
    assert costs.updates_per_epoch == pytest.approx(100 / 0.95)
    assert (costs.update.source_tokens, costs.update.target_tokens) == pytest.approx((400, 20))
    assert (costs.has_decoder, costs.writes_text) == (False, False)
    # Without a corpus too the budget that is full first ends a batch.
    costs = estimate_run(BASE, settings, model_class=head)
    assert costs.update.target_tokens == 20
    assert costs.update.source_tokens < 1000
    wide = dataclasses.replace(settings, max_target_tokens=1000)
    assert estimate_run(BASE, wide, model_class=head).update.source_tokens == 1000
    pooled = VanillaTransformerConfig(vocab_size=37_000, pooling="decoder")
    assert estimate_run(pooled, settings, model_class=head).has_decoder


def test_tokens_of_texts_are_estimated_from_their_words() -> None:
    generator = random.Random(0)
    words = ["a", "an", "house", "translation", "uncountable"]
    texts = [" ".join(generator.choices(words, k=generator.randint(1, 30))) for _ in range(6000)]
    np.testing.assert_allclose(estimate_tokens(texts), [1.3 * len(text.split()) for text in texts])
    tokenizer = train_tokenizer(texts, 300)
    found = sum(map(len, tokenizer(texts, add_special_tokens=False)["input_ids"]))
    assert estimate_tokens(texts, tokenizer).sum() == pytest.approx(found, rel=0.02)
    assert estimate_tokens(["", " "], tokenizer).tolist() == [0, 0]
    assert estimate_tokens([], tokenizer).shape == (0,)


def test_pairs_over_the_length_do_not_count() -> None:
    words = ["a", "b c", "d " * 20]
    # 1.3 tokens a word and `</s>`; the third is too long on either side.
    size = measure_pairs([*words, "a"], ["a", "a", "a", words[2]], None, max_length=10)
    assert size == CorpusSize(2, pytest.approx(3 * 1.3 + 2), pytest.approx(2 * 1.3 + 2), False)
