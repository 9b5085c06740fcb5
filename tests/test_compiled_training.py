"""Training under `torch.compile`: one graph whatever the batch, and the numbers of eager mode."""

import copy
import importlib.util
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch._aot_autograd.utils import make_boxed_func

from vanilla_transformer import VanillaTransformerConfig, VanillaTransformerForConditionalGeneration
from vanilla_transformer import modeling_vanilla_transformer as modeling

V = 53
# Sentences, source and target length; rows of target on both sides of the loss's chunk of 256.
SHAPES = [
    (2, 6, 5),
    (3, 9, 7),
    (8, 4, 12),
    (16, 20, 24),
    (40, 8, 9),
    (7, 33, 21),
    (5, 5, 5),
    (64, 6, 7),
    (12, 12, 3),
    (30, 40, 50),
    (2, 60, 2),
    (100, 9, 11),
    (4, 4, 64),
]
ONE_SENTENCE = [(1, 30, 31), (1, 12, 9), (1, 2, 40)]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """Graphs of other tests count towards the limit of recompilations."""
    torch.manual_seed(0)
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def build(dropout: float = 0.0) -> VanillaTransformerForConditionalGeneration:
    torch.manual_seed(0)
    config = VanillaTransformerConfig(
        vocab_size=V,
        d_model=16,
        d_ff=32,
        num_heads=2,
        num_encoder_layers=1,
        num_decoder_layers=1,
        dropout=dropout,
        label_smoothing=0.1,
    )
    return VanillaTransformerForConditionalGeneration(config).train()


def batch(sentences: int, source: int, target: int) -> dict[str, Any]:
    """Padded on the right, the first sentence full; counted in a plain number, as the loop does."""
    ids = torch.randint(5, V, (sentences, source))
    mask = torch.arange(source) < torch.randint(1, source + 1, (sentences, 1))
    labels = torch.randint(5, V, (sentences, target))
    keep = torch.arange(target) < torch.randint(1, target + 1, (sentences, 1))
    mask[0], keep[0] = True, True
    return {
        "input_ids": ids.masked_fill(~mask, 0),
        "attention_mask": mask.long(),
        "labels": labels.masked_fill(~keep, -100),
        "num_items_in_batch": int(keep.sum()),
    }


def train_step(
    model: nn.Module, inputs: dict[str, Any], seed: int = 0
) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients."""
    model.zero_grad()
    torch.manual_seed(seed)
    loss = model(**inputs).loss
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_alike(
    ours: tuple[float, dict[str, torch.Tensor]], expected: tuple[float, dict[str, torch.Tensor]]
) -> None:
    assert ours[0] == pytest.approx(expected[0], rel=1e-5)
    assert ours[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        torch.testing.assert_close(ours[1][name], gradient, rtol=1e-5, atol=1e-6)


def counting_backend() -> tuple[Callable[..., Any], Counter[str]]:
    """What traces all that the default backend does, and how many graphs it was given."""
    graphs: Counter[str] = Counter()

    def count(kind: str) -> Callable[..., Any]:
        def compiler(graph: Any, _: Any) -> Any:
            graphs[kind] += 1
            return make_boxed_func(graph.forward)

        return compiler

    return aot_autograd(fw_compiler=count("forward"), bw_compiler=count("backward")), graphs


@pytest.fixture
def fresh_accelerate(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Its state is one for a process, precision included."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


# ----------------------------------------------------------------------------------- the model


def test_one_graph_serves_batches_of_every_shape() -> None:
    eager = build()
    compiled = copy.deepcopy(eager)
    backend, graphs = counting_backend()
    compiled.compile(dynamic=True, fullgraph=True, backend=backend)
    for shape in SHAPES:
        inputs = batch(*shape)
        assert_alike(train_step(compiled, inputs), train_step(eager, inputs))
    assert graphs == {"forward": 1, "backward": 1}
    # Translations on the way, of a length each, go around the compiler.
    source = batch(2, 6, 5)["input_ids"]
    with torch.compiler.set_stance("force_eager"):
        translated = compiled.eval().generate(source, max_new_tokens=4)
    assert torch.equal(translated, eager.eval().generate(source, max_new_tokens=4))
    assert graphs == {"forward": 1, "backward": 1}


def test_compiling_in_place_leaves_names_and_files_as_they_are(tmp_path: Path) -> None:
    model = build()
    names = set(model.state_dict())
    model.compile(dynamic=True)
    assert set(model.state_dict()) == names
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_default_backend_makes_two_graphs_at_most() -> None:
    """One for batches and one for lone sentences: torch makes a case of its own of any size 1."""
    if not shutil.which("g++") and not shutil.which("clang++"):
        pytest.skip("torch's default compiler on a CPU needs a C++ compiler, and there is none")
    eager = build()
    compiled = copy.deepcopy(eager)
    with torch._dynamo.config.patch(recompile_limit=2, fail_on_recompile_limit_hit=True):
        compiled.compile(dynamic=True, fullgraph=True)
        for shape in [*SHAPES, *ONE_SENTENCE, *SHAPES[:2]]:
            inputs = batch(*shape)
            assert_alike(train_step(compiled, inputs), train_step(eager, inputs))


@pytest.mark.slow
def test_compiled_dropout_is_dropout() -> None:
    """Other random numbers than in eager mode, and the same distribution of the loss."""
    eager = build(dropout=0.1)
    compiled = copy.deepcopy(eager)
    compiled.compile(dynamic=True, fullgraph=True, backend="aot_eager")
    inputs = batch(16, 9, 8)
    plain = eager.eval()(**inputs).loss.item()
    eager.train()

    def losses(model: nn.Module) -> torch.Tensor:
        return torch.tensor([train_step(model, inputs, seed)[0] for seed in range(200)])

    ours, expected = losses(compiled), losses(eager)
    assert torch.equal(ours[:3], losses(compiled)[:3])
    assert ours.unique().numel() > 190
    error = ((ours.var() + expected.var()) / 200).sqrt().item()
    assert abs((ours.mean() - expected.mean()).item()) < 4 * error
    assert (ours.std() / expected.std()).item() == pytest.approx(1.0, abs=0.25)
    # It is far from doing nothing.
    assert expected.std().item() > 1e-3 * plain


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_recomputed_activations_drop_the_same_elements(backend: str) -> None:
    """Compiled with activation checkpointing: gradients of the very masks of the forward pass."""
    if backend == "inductor" and not shutil.which("g++") and not shutil.which("clang++"):
        pytest.skip("torch's default compiler on a CPU needs a C++ compiler, and there is none")
    plain = build(dropout=0.3)
    checkpointed = copy.deepcopy(plain)
    checkpointed.activation_checkpointing_enable({"use_reentrant": False})
    for model in (plain, checkpointed):
        model.compile(dynamic=True, fullgraph=True, backend=backend)
    for seed, shape in enumerate(SHAPES[:3]):
        inputs = batch(*shape)
        assert_alike(train_step(checkpointed, inputs, seed), train_step(plain, inputs, seed))


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_accelerate")
def test_a_model_compiled_in_place_may_be_prepared_for_bf16(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the loop does it: checkpointing, `compile`, then Accelerate's autocast around it all."""
    # What is compiled is not packed, and in bf16 matrices of other shapes round otherwise.
    monkeypatch.setattr(modeling.VanillaTransformerStack, "can_pack", lambda *_, **__: False)
    eager, model = build(), build()
    model.activation_checkpointing_enable({"use_reentrant": False})
    backend, graphs = counting_backend()
    model.compile(dynamic=True, fullgraph=True, backend=backend)
    accelerator = Accelerator(mixed_precision="bf16", cpu=True)
    prepared = accelerator.prepare_model(model)
    assert prepared.state_dict().keys() == eager.state_dict().keys()
    for shape in SHAPES[:4]:
        inputs = batch(*shape)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            expected = eager(**inputs).loss
        eager.zero_grad()
        expected.backward()
        loss = train_step(prepared, inputs)[0]
        assert loss == pytest.approx(expected.item(), rel=1e-5)
        for ours, other in zip(prepared.parameters(), eager.parameters(), strict=True):
            # Products in bf16 may be summed in another order: 8 bits, 0.4%.
            torch.testing.assert_close(ours.grad, other.grad, rtol=2e-2, atol=1e-3)
    assert graphs == {"forward": 1, "backward": 1}


DATA_PARALLEL_RUN = """
import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from vanilla_transformer import VanillaTransformerForConditionalGeneration as Model

dist.init_process_group("gloo")
rank = dist.get_rank()
whole, split = (Model.from_pretrained(sys.argv[1]).train() for _ in range(2))
split.activation_checkpointing_enable({"use_reentrant": False})
split.compile(dynamic=True, fullgraph=True, backend="aot_eager")
# Gradients travel in several buckets, and torch cuts the compiled graph at each.
parallel = DistributedDataParallel(split, bucket_cap_mb=1.1)
assert sum(p.numel() for p in split.parameters()) * 4 > 3 * 1.1 * 2**20
torch.manual_seed(0)
for sentences, source, target in [(4, 6, 5), (6, 9, 7), (10, 3, 12)]:
    ids = torch.randint(5, 53, (sentences, source))
    labels = torch.randint(5, 53, (sentences, target))
    labels[::2, 3:] = -100
    count = int((labels != -100).sum())
    whole.zero_grad()
    whole(input_ids=ids, labels=labels, num_items_in_batch=count).loss.backward()
    parallel.zero_grad()
    loss = parallel(input_ids=ids[rank::2], labels=labels[rank::2], num_items_in_batch=count).loss
    (2 * loss).backward()
    for ours, expected in zip(split.parameters(), whole.parameters()):
        torch.testing.assert_close(ours.grad, expected.grad, rtol=1e-4, atol=1e-6)
assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
print("alike")
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_compiled_processes_compute_what_one_does(tmp_path: Path, repository: Path) -> None:
    config = VanillaTransformerConfig(
        vocab_size=V,
        d_model=256,
        num_heads=2,
        num_encoder_layers=1,
        num_decoder_layers=1,
        d_ff=512,
        dropout=0.0,
    )
    VanillaTransformerForConditionalGeneration(config).save_pretrained(tmp_path)
    script = tmp_path / "run.py"
    script.write_text(DATA_PARALLEL_RUN)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(script), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(repository), "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.count("alike") == 2


# ------------------------------------------------------------------------------------ the loss


@pytest.mark.parametrize("precision", ["fp32", "bf16 autocast", "bf16"])
@pytest.mark.parametrize("bias", [False, True])
def test_one_graph_of_the_loss_serves_any_number_of_rows(bias: bool, precision: str) -> None:
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    head = nn.Linear(16, V, bias=bias).to(dtype)
    compiled = torch.compile(
        modeling.language_model_loss, dynamic=True, fullgraph=True, backend="aot_eager"
    )
    is_autocast = precision == "bf16 autocast"
    with torch._dynamo.config.patch(error_on_recompile=True):
        # The last has nothing to learn from.
        for sentences, length, ignored in [(2, 5, 0.5), (3, 100, 0.2), (9, 70, 0.0), (4, 6, 1.0)]:
            hidden = torch.randn(sentences, length, 16, dtype=dtype, requires_grad=True)
            labels = torch.randint(0, V, (sentences, length))
            labels[torch.rand(sentences, length) < ignored] = -100
            results = []
            for function in (compiled, modeling.language_model_loss):
                with torch.autocast("cpu", torch.bfloat16) if is_autocast else nullcontext():
                    loss = function(hidden, head, labels, 0.1, sentences + length)
                results.append([loss, *torch.autograd.grad(loss, [hidden, *head.parameters()])])
            # The same operations in the same order.
            for ours, expected in zip(*results, strict=True):
                assert ours.dtype == expected.dtype
                assert torch.equal(ours, expected)
            assert bool(results[0][0] > 0) == (ignored < 1)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_keeps_what_it_promises_the_compiler(bias: bool, dtype: torch.dtype) -> None:
    """Shapes and types of its results, and inputs that stay as they are."""
    arguments = (
        torch.randn(300, 16),
        torch.randn(V, 16),
        torch.randn(V) if bias else None,
        torch.randint(0, V, (300,)),
        0.1,
        dtype,
    )
    results = torch.library.opcheck(
        modeling._compiled_projected_cross_entropy,
        arguments,
        test_utils=("test_schema", "test_faketensor"),
    )
    assert set(results.values()) == {"SUCCESS"}


def test_another_version_of_the_file_does_not_disturb_this_one(tmp_path: Path) -> None:
    """A model from the Hub brings its own, which transformers may load twice."""
    text = Path(modeling.__file__).read_text("utf-8")
    path = tmp_path / "modeling.py"
    path.write_text(text.replace("return loss, hidden_grad", "return loss + 1.0, hidden_grad"))
    specification = importlib.util.spec_from_file_location("transformers_modules.4-hub.m", path)
    assert specification is not None
    assert specification.loader is not None
    other = importlib.util.module_from_spec(specification)
    # Where its relative import of the configuration leads.
    other.__package__ = "vanilla_transformer"
    arguments = (torch.randn(7, 16), torch.randn(V, 16), None, torch.arange(7), 0.1, torch.float32)
    expected = modeling._projected_cross_entropy(*arguments)[0]
    for _ in range(2):
        specification.loader.exec_module(other)
        assert torch.equal(modeling._compiled_projected_cross_entropy(*arguments)[0], expected)
        assert torch.equal(other._compiled_projected_cross_entropy(*arguments)[0], expected + 1.0)
