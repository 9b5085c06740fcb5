"""Activation checkpointing: less memory, and not one bit of the training changed."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers.utils import logging as transformers_logging

from vanilla_transformer import (
    VanillaTransformerConfig,
    VanillaTransformerForCausalLM,
    VanillaTransformerForConditionalGeneration,
    VanillaTransformerForMaskedLM,
    VanillaTransformerPreTrainedModel,
)

HEADS = [
    VanillaTransformerForConditionalGeneration,
    VanillaTransformerForCausalLM,
    VanillaTransformerForMaskedLM,
]


def build(
    head: type[VanillaTransformerPreTrainedModel], checkpointing: bool
) -> VanillaTransformerPreTrainedModel:
    torch.manual_seed(0)
    config = VanillaTransformerConfig(
        vocab_size=53,
        d_model=16,
        d_ff=32,
        num_heads=2,
        num_encoder_layers=3,
        num_decoder_layers=3,
        dropout=0.3,
        label_smoothing=0.1,
    )
    model = head(config).train()
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    return model


def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 53, (8, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(12) < torch.arange(4, 12).unsqueeze(1)
    return {
        "input_ids": ids.masked_fill(~mask, 0),
        "attention_mask": mask.long(),
        "labels": ids.masked_fill(~mask, -100),
    }


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("is_autocast", [False, True])
def test_a_run_with_checkpointing_is_the_same_run(
    head: type[VanillaTransformerPreTrainedModel], is_autocast: bool
) -> None:
    """Bit for bit, dropout too: its generator goes back for the recomputation, and on again."""
    runs = []
    for checkpointing in (False, True):
        model, inputs = build(head, checkpointing), batch()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        losses = []
        for _ in range(3):
            with torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
                loss = model(**inputs).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        runs.append((losses, torch.get_rng_state(), [p.detach() for p in model.parameters()]))
    plain, checkpointed = runs
    assert plain[0] == checkpointed[0]
    assert plain[0][0] != plain[0][2]
    assert torch.equal(plain[1], checkpointed[1])
    assert all(torch.equal(*pair) for pair in zip(plain[2], checkpointed[2], strict=True))


@pytest.mark.parametrize("head", HEADS)
def test_layers_keep_their_inputs_alone(head: type[VanillaTransformerPreTrainedModel]) -> None:
    kept = []
    for checkpointing in (False, True):
        model = build(head, checkpointing)
        parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
        storages: dict[int, torch.UntypedStorage] = {}

        def pack(
            tensor: torch.Tensor,
            parameters: set[int] = parameters,
            storages: dict[int, torch.UntypedStorage] = storages,
        ) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                # Held, so that no other tensor gets its place and counts as the same.
                storages[storage.data_ptr()] = storage
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(**batch())
        kept.append(sum(storage.nbytes() for storage in storages.values()))
    # A layer's input is [8, 12, 16] floats, 6 kB; what it computes on the way is over ten times
    # that. The loss and the embeddings keep theirs either way.
    assert 0 < kept[1] < kept[0] / 4


@pytest.mark.parametrize("head", HEADS)
def test_checkpointing_has_nothing_to_warn_of(
    head: type[VanillaTransformerPreTrainedModel], caplog: pytest.LogCaptureFixture
) -> None:
    """transformers warns of a cache in training; nobody asked for one, and a warning would stop
    `torch.compile`."""
    transformers_logging.enable_propagation()
    try:
        # Warnings are given once.
        transformers_logging.warning_once.cache_clear()
        with caplog.at_level(logging.WARNING):
            inputs = batch()
            build(head, checkpointing=True)(**inputs).loss.backward()
            labels = inputs.pop("labels")
            if head is VanillaTransformerForConditionalGeneration:
                inputs["decoder_input_ids"] = labels.clamp_min(0)
            # Someone's own loss on the logits.
            build(head, checkpointing=True)(**inputs).logits.sum().backward()
    finally:
        transformers_logging.disable_propagation()
    assert not caplog.records


PARALLEL_RUN = """
import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from vanilla_transformer import VanillaTransformerForConditionalGeneration as Model

dist.init_process_group("gloo")
rank = dist.get_rank()
ids = torch.randint(5, 53, (6, 9), generator=torch.Generator().manual_seed(1))[rank::2]
gradients = []
for checkpointing in (False, True):
    model = Model.from_pretrained(sys.argv[1]).train()
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    parallel = DistributedDataParallel(model)
    torch.manual_seed(rank)
    for _ in range(2):
        # The second time without talking, as the pieces of an update but the last.
        with parallel.no_sync():
            parallel(input_ids=ids, labels=ids).loss.backward()
        parallel(input_ids=ids, labels=ids).loss.backward()
    gradients.append([p.grad for p in model.parameters()])
assert all(torch.equal(*pair) for pair in zip(*gradients))
first = gradients[0][0].clone()
dist.broadcast(first, src=0)
assert torch.equal(first, gradients[0][0])
print("alike")
dist.destroy_process_group()
"""


def test_two_processes_checkpoint_alike(tmp_path: Path, repository: Path) -> None:
    build(VanillaTransformerForConditionalGeneration, False).save_pretrained(tmp_path)
    script = tmp_path / "run.py"
    script.write_text(PARALLEL_RUN)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(script), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(repository), "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.count("alike") == 2
