"""The loss of every head against torch's own, in value, gradients, memory and accumulation."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vanilla_transformer import (
    VanillaTransformerConfig,
    VanillaTransformerForCausalLM,
    VanillaTransformerForConditionalGeneration,
    VanillaTransformerForMaskedLM,
    VanillaTransformerPreTrainedModel,
)
from vanilla_transformer.modeling_vanilla_transformer import (
    IGNORE_INDEX,
    language_model_loss,
    negative_log_likelihood,
    shift_right,
)

D, V = 16, 53
# `language_model_loss` goes through this many rows at a time where d_model is below it.
CHUNK = 256
HEADS = [
    VanillaTransformerForConditionalGeneration,
    VanillaTransformerForCausalLM,
    VanillaTransformerForMaskedLM,
]


def problem(
    rows: int, bias: bool, ignored: float = 0.0, seed: int = 0
) -> tuple[torch.Tensor, nn.Linear, torch.Tensor]:
    """Hidden states `[1, rows, D]`, an output layer and labels `[1, rows]`."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(1, rows, D, generator=generator).requires_grad_()
    head = nn.Linear(D, V, bias=bias)
    for parameter in head.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    labels = torch.randint(0, V, (1, rows), generator=generator)
    labels[torch.rand(1, rows, generator=generator) < ignored] = IGNORE_INDEX
    return hidden, head, labels


def reference(
    hidden: torch.Tensor,
    head: nn.Linear,
    labels: torch.Tensor,
    smoothing: float,
    count: int | None = None,
) -> tuple[float, list[torch.Tensor]]:
    """torch's cross-entropy of the full logits in double precision, and its gradients."""
    leaves = [hidden.detach().double().requires_grad_()]
    leaves += [p.detach().double().requires_grad_() for p in head.parameters()]
    logits = F.linear(leaves[0], leaves[1], leaves[2] if head.bias is not None else None)
    loss = F.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), reduction="sum", label_smoothing=smoothing
    )
    loss = loss / (count if count is not None else max(1, int((labels != IGNORE_INDEX).sum())))
    return loss.item(), list(torch.autograd.grad(loss, leaves))


def gradients(loss: torch.Tensor, hidden: torch.Tensor, head: nn.Linear) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, [hidden, *head.parameters()]))


def assert_close(
    ours: list[torch.Tensor], expected: list[torch.Tensor], relative: float = 1e-5
) -> None:
    """Largest difference, relative to the largest expected number of each tensor."""
    assert len(ours) == len(expected)
    for one, other in zip(ours, expected, strict=True):
        scale = other.abs().max().clamp_min(1e-30)
        assert ((one.double() - other).abs().max() / scale).item() < relative


@pytest.mark.parametrize("rows", [1, 7, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 37])
@pytest.mark.parametrize("bias", [False, True])
def test_value_and_gradients_are_those_of_cross_entropy(rows: int, bias: bool) -> None:
    for smoothing in (0.0, 0.1, 0.6):
        hidden, head, labels = problem(rows, bias, ignored=0.3 if rows > 1 else 0.0)
        loss = language_model_loss(hidden, head, labels, smoothing)
        expected, expected_gradients = reference(hidden, head, labels, smoothing)
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(expected, rel=1e-6)
        assert_close(gradients(loss, hidden, head), expected_gradients)


def test_the_smoothed_target_is_the_paper_s() -> None:
    """q = (1 - eps) on the label plus eps / V everywhere; cross-entropy summed term by term."""
    hidden, head, labels = problem(3, bias=True)
    weight, bias = head.weight.tolist(), head.bias.tolist()
    epsilon, total = 0.1, 0.0
    for row in range(3):
        scores = [
            sum(w * x for w, x in zip(weight[v], hidden[0, row].tolist(), strict=True)) + bias[v]
            for v in range(V)
        ]
        normaliser = math.log(sum(math.exp(score) for score in scores))
        for v in range(V):
            q = epsilon / V + (1 - epsilon if v == labels[0, row] else 0.0)
            total -= q * (scores[v] - normaliser)
    ours = language_model_loss(hidden, head, labels, epsilon)
    assert ours.item() == pytest.approx(total / 3, rel=1e-6)


@pytest.mark.parametrize("kind", [int, torch.tensor])
def test_num_items_in_batch_divides_the_sum(kind: Callable[[int], Any]) -> None:
    hidden, head, labels = problem(40, bias=True, ignored=0.5)
    loss = language_model_loss(hidden, head, labels, 0.1, kind(123))
    expected, expected_gradients = reference(hidden, head, labels, 0.1, count=123)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert_close(gradients(loss, hidden, head), expected_gradients)
    with torch.no_grad():
        plain = negative_log_likelihood(head(hidden), labels, kind(123))
    assert plain.item() == pytest.approx(reference(hidden, head, labels, 0.0, 123)[0], rel=1e-6)


def test_gradients_scale_with_what_comes_from_above() -> None:
    hidden, head, labels = problem(300, bias=True, ignored=0.2)
    loss = language_model_loss(hidden, head, labels, 0.1)
    _, expected = reference(hidden, head, labels, 0.1)
    assert_close(gradients(loss * -7.0, hidden, head), [-7.0 * g for g in expected])


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_large_logits_do_not_overflow(offset: float) -> None:
    hidden, head, labels = problem(20, bias=True)
    head.bias.data += offset
    head.weight.data *= 50
    loss = language_model_loss(hidden, head, labels, 0.0)
    expected, _ = reference(hidden, head, labels, 0.0)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert all(g.isfinite().all() for g in gradients(loss, hidden, head))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("count", [None, 9])
def test_all_labels_ignored_gives_zero_and_finite_gradients(bias: bool, count: int | None) -> None:
    hidden, head, labels = problem(10, bias)
    labels.fill_(IGNORE_INDEX)
    loss = language_model_loss(hidden, head, labels, 0.1, count)
    assert loss.item() == 0.0
    assert all((gradient == 0).all() for gradient in gradients(loss, hidden, head))
    assert negative_log_likelihood(head(hidden), labels, count).item() == 0.0


def test_bf16_autocast_is_close() -> None:
    hidden, head, labels = problem(600, bias=True, ignored=0.2)
    head.weight.data /= 4
    expected, expected_gradients = reference(hidden, head, labels, 0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = language_model_loss(hidden, head, labels, 0.1)
        # The products are in bf16, whose 8 bits are 0.4%; sums and softmax are not.
        assert loss.item() == pytest.approx(expected, rel=5e-3)
    assert_close(gradients(loss, hidden, head), expected_gradients, relative=2e-2)


def test_fp16_autocast_keeps_small_gradients() -> None:
    """fp16 ends at 6e-8, and the share of one token in a large update is smaller than that.

    A gradient scaler only multiplies what comes from above: what was lost before stays lost.
    """
    hidden, head, labels = problem(300, bias=True)
    head.weight.data /= 4
    count = 25_000_000
    _, expected_gradients = reference(hidden, head, labels, 0.1, count)
    with torch.autocast("cpu", dtype=torch.float16):
        loss = language_model_loss(hidden, head, labels, 0.1, count)
    ours = gradients(loss * 65_536.0, hidden, head)
    assert_close([g / 65_536.0 for g in ours], expected_gradients, relative=1e-2)


def test_bf16_parameters_are_close() -> None:
    hidden, head, labels = problem(300, bias=True)
    head.weight.data /= 4
    head.to(torch.bfloat16)
    hidden = hidden.detach().to(torch.bfloat16).requires_grad_()
    loss = language_model_loss(hidden, head, labels, 0.1)
    expected, expected_gradients = reference(hidden, head, labels, 0.1)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=5e-3)
    ours = gradients(loss, hidden, head)
    assert {gradient.dtype for gradient in ours} == {torch.bfloat16}
    assert_close(ours, expected_gradients, relative=2e-2)


class LargestTensor(TorchDispatchMode):
    """Notes the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.elements = max(self.elements, leaf.numel())
        return result


def test_the_whole_logits_never_exist() -> None:
    rows = 8 * CHUNK
    hidden, head, labels = problem(rows, bias=True)
    with LargestTensor() as ours:
        language_model_loss(hidden, head, labels, 0.1).backward()
    with LargestTensor() as full:
        F.cross_entropy(head(hidden).flatten(0, 1), labels.flatten()).backward()
    assert full.elements == rows * V
    assert ours.elements == max(CHUNK * V, rows * D)


def test_nothing_of_the_logits_size_is_kept_for_backward() -> None:
    rows, saved = 8 * CHUNK, []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor.numel())
        return tensor

    hidden, head, labels = problem(rows, bias=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        language_model_loss(hidden, head, labels, 0.1)
    assert saved
    assert max(saved) <= rows * D


# ----------------------------------------------------------------------------------- the heads


def build(
    head: type[VanillaTransformerPreTrainedModel], **overrides: Any
) -> VanillaTransformerPreTrainedModel:
    torch.manual_seed(0)
    arguments: dict[str, Any] = {
        "vocab_size": V,
        "d_model": D,
        "d_ff": 32,
        "num_heads": 2,
        "num_encoder_layers": 2,
        "num_decoder_layers": 2,
        "dropout": 0.0,
        "label_smoothing": 0.1,
        **overrides,
    }
    return head(VanillaTransformerConfig(**arguments))


def batch(sentences: int = 8, length: int = 9) -> dict[str, torch.Tensor]:
    """Right-padded rows of very different lengths."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([(3 * i) % (length - 2) + 3 for i in range(sentences)])
    mask = torch.arange(length) < lengths.unsqueeze(1)
    ids = torch.randint(5, V, (sentences, length), generator=generator).masked_fill(~mask, 0)
    return {
        "input_ids": ids,
        "attention_mask": mask.long(),
        "labels": ids.masked_fill(~mask, IGNORE_INDEX),
    }


def targets(head: type, labels: torch.Tensor) -> torch.Tensor:
    """What each position is to predict: the causal head shifts its labels itself."""
    if head is not VanillaTransformerForCausalLM:
        return labels
    return torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], IGNORE_INDEX)], dim=1)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("output_bias", [False, True])
def test_training_loss_is_smoothed_and_evaluation_loss_is_not(
    head: type[VanillaTransformerPreTrainedModel], output_bias: bool
) -> None:
    model, inputs = build(head, output_bias=output_bias), batch()
    if output_bias:
        nn.init.normal_(model.lm_head.bias)
    trained = model.train()(**inputs)
    evaluated = model.eval()(**inputs)
    assert trained.logits is None
    assert evaluated.logits.shape == (8, 9, V)
    expected = targets(head, inputs["labels"]).flatten()
    logits = evaluated.logits.flatten(0, 1).double()
    smoothed = F.cross_entropy(logits, expected, label_smoothing=0.1)
    assert trained.loss.item() == pytest.approx(smoothed.item(), rel=1e-5)
    assert evaluated.loss.item() == pytest.approx(F.cross_entropy(logits, expected).item(), 1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_training_gradients_are_those_of_full_logits(
    head: type[VanillaTransformerPreTrainedModel],
) -> None:
    """Through the tied matrix too, which is embedding and output layer at once."""
    model, inputs = build(head).train(), batch()
    model(**inputs).loss.backward()
    ours = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    labels = inputs.pop("labels")
    if head is VanillaTransformerForConditionalGeneration:
        inputs["decoder_input_ids"] = shift_right(labels, 1, 0)[0]
    logits = model(**inputs).logits
    F.cross_entropy(
        logits.flatten(0, 1), targets(head, labels).flatten(), label_smoothing=0.1
    ).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("training", [True, False])
def test_four_micro_batches_are_one_large_batch(
    head: type[VanillaTransformerPreTrainedModel], training: bool
) -> None:
    """The ratio of the gradients' norms is 1.000, though the micro-batches' tokens differ."""
    inputs = batch()
    count = int((targets(head, inputs["labels"]) != IGNORE_INDEX).sum())
    parts = [{name: tensor[2 * i : 2 * i + 2] for name, tensor in inputs.items()} for i in range(4)]
    tokens = [int((part["labels"] != IGNORE_INDEX).sum()) for part in parts]
    assert max(tokens) >= 1.3 * min(tokens)

    model = build(head).train(training)
    loss = model(**inputs).loss
    loss.backward()
    large = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    model.zero_grad()
    total = 0.0
    for part in parts:
        part_loss = model(**part, num_items_in_batch=torch.tensor(count)).loss
        part_loss.backward()
        total += part_loss.item()
    small = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    assert total == pytest.approx(loss.item(), rel=1e-6)
    assert (small.norm() / large.norm()).item() == pytest.approx(1.0, abs=1e-6)
    torch.testing.assert_close(small, large, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("training", [True, False])
def test_a_batch_without_labels_to_learn_costs_nothing(
    head: type[VanillaTransformerPreTrainedModel], training: bool
) -> None:
    model, inputs = build(head).train(training), batch()
    inputs["labels"].fill_(IGNORE_INDEX)
    loss = model(**inputs).loss
    loss.backward()
    assert loss.item() == 0.0
    for parameter in model.parameters():
        assert parameter.grad is None or (parameter.grad == 0).all()


@pytest.mark.parametrize("training", [True, False])
def test_left_padded_labels_give_the_same_loss(training: bool) -> None:
    model, inputs = build(VanillaTransformerForConditionalGeneration).train(training), batch()
    right = model(**inputs).loss
    for labels in (
        torch.stack(
            [torch.roll(row, int((row == IGNORE_INDEX).sum())) for row in inputs["labels"]]
        ),
        F.pad(inputs["labels"], (3, 2), value=IGNORE_INDEX),
    ):
        left = model(**{**inputs, "labels": labels}).loss
        assert left.item() == pytest.approx(right.item(), rel=1e-6)


@pytest.mark.parametrize("head", HEADS)
def test_one_trainer_update_does_not_depend_on_the_accumulation(
    head: type[VanillaTransformerPreTrainedModel], tmp_path: Any
) -> None:
    """Through transformers' `Trainer`, which counts the tokens of an update itself."""
    from transformers import Trainer, TrainingArguments

    inputs = batch()
    examples = [{name: tensor[i] for name, tensor in inputs.items()} for i in range(8)]
    trained = []
    for micro_batch, accumulation in ((8, 1), (2, 4)):
        model = build(head)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        arguments = TrainingArguments(
            output_dir=tmp_path / str(micro_batch),
            per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
            learning_rate=1.0,
            lr_scheduler_type="constant",
            optim="sgd",
            max_grad_norm=0,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        Trainer(model=model, args=arguments, train_dataset=examples).train()
        trained.append({n: p.detach() - before[n] for n, p in model.named_parameters()})
    large, small = (torch.cat([t.flatten() for t in steps.values()]) for steps in trained)
    assert large.norm() > 0.01
    assert (small.norm() / large.norm()).item() == pytest.approx(1.0, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
def test_compiled_training_loss_and_gradients_agree(
    head: type[VanillaTransformerPreTrainedModel],
) -> None:
    """Under `torch.compile` the loss is one operation, which the compiler does not look into."""
    model, inputs = build(head).train(), batch()
    loss = model(**inputs).loss
    loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    # Graphs of other tests count towards the limit of recompilations.
    torch.compiler.reset()
    # "aot_eager" traces everything that the default backend does, without its C++ compiler.
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    compiled_loss = compiled(**inputs).loss
    compiled_loss.backward()
    assert compiled_loss.item() == pytest.approx(loss.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-6)


# --------------------------------------------------------------------------------- shift right


def naive_shift(row: list[int], start: int, pad: int) -> tuple[list[int], list[bool]]:
    places = [i for i, label in enumerate(row) if label != IGNORE_INDEX]
    first = places[0] if places else 0
    shifted, mask = [], []
    for i in range(len(row)):
        previous = row[i - 1] if i > first else None
        shifted.append(
            start if i == first else pad if previous in (None, IGNORE_INDEX) else int(previous)
        )
        mask.append(i >= first if places else i == 0)
    return shifted, mask


@pytest.mark.parametrize(
    "rows",
    [
        [[5, 6, 7, 2]],
        [[5, 6, 2, -100], [5, 2, -100, -100]],
        [[-100, -100, 5, 2], [-100, 6, 2, -100]],
        [[-100, -100, -100, 2]],
        [[-100, -100, -100, -100]],
        [[5], [-100]],
        # A label that is the pad, or the start, is a label.
        [[0, 1, 0, 2], [-100, 0, 1, 2]],
        # A hole in the middle reads as a pad.
        [[5, -100, 6, 2]],
    ],
)
def test_shift_right_is_the_naive_one(rows: list[list[int]]) -> None:
    shifted, mask = shift_right(torch.tensor(rows), start_token_id=1, pad_token_id=0)
    expected = [naive_shift(row, 1, 0) for row in rows]
    assert shifted.tolist() == [pair[0] for pair in expected]
    assert mask.tolist() == [pair[1] for pair in expected]


def test_the_collator_s_decoder_input_is_the_model_s() -> None:
    model = build(VanillaTransformerForConditionalGeneration, decoder_start_token_id=2)
    labels = batch()["labels"]
    shifted = model.prepare_decoder_input_ids_from_labels(labels)
    assert (shifted[:, 0] == 2).all()
    assert shifted[0].tolist() == naive_shift(labels[0].tolist(), 2, 0)[0]
    # The caller's labels stay.
    assert torch.equal(labels, batch()["labels"])


def test_a_decoder_with_nothing_to_read_is_refused() -> None:
    """Trainer's own label smoothing takes the labels away; other models then train wrong."""
    model = build(VanillaTransformerForConditionalGeneration)
    with pytest.raises(ValueError, match=r"nothing to read.*label_smoothing in the model's config"):
        model(input_ids=batch()["input_ids"])
