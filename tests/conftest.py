"""What every test stands on: no network, a cache of its own, the shared data, a tiny model."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from torch import nn

    from vanilla_transformer import VanillaTransformerConfig, VanillaTransformerPreTrainedModel

REPOSITORY = Path(__file__).resolve().parent.parent

_CACHE = pytest.StashKey[str]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the README first: it takes minutes, which the other worker would wait for at the end."""
    items.sort(key=lambda item: not item.nodeid.startswith("tests/test_readme.py"))


def pytest_configure(config: pytest.Config) -> None:
    """Set the environment before any test module imports a Hugging Face library.

    They read it once, at import. Each pytest-xdist worker gets a cache of its own, so that
    no test meets what another one, or the user, has left there.
    """
    cache = tempfile.mkdtemp(prefix="vanilla-transformer-tests-")
    config.stash[_CACHE] = cache
    os.environ.update(
        HF_HOME=cache,
        HF_HUB_OFFLINE="1",
        HF_DATASETS_OFFLINE="1",
        HF_EVALUATE_OFFLINE="1",
        HF_HUB_DISABLE_TELEMETRY="1",
        MPLBACKEND="Agg",
        MPLCONFIGDIR=str(Path(cache) / "matplotlib"),
        # Tests fork data workers after tokenising: the library would warn each time.
        TOKENIZERS_PARALLELISM="false",
    )
    # More specific than HF_HOME: a user's setting would win over the cache above.
    for name in ("HF_DATASETS_CACHE", "HF_EVALUATE_CACHE", "HF_HUB_CACHE", "HF_MODULES_CACHE"):
        os.environ.pop(name, None)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the cache that `pytest_configure` made."""
    shutil.rmtree(config.stash[_CACHE], ignore_errors=True)


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the checkout, for the tests that read its files."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real corpora; the test is skipped where there is none.

    `VANILLA_TRANSFORMER_DATA` names it, else `../shared/data` beside the checkout is tried.
    """
    named = os.environ.get("VANILLA_TRANSFORMER_DATA")
    folder = Path(named) if named else REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}; set VANILLA_TRANSFORMER_DATA to its folder")
    return folder


# A tiny model. What it needs is imported when it is built: see `pytest_configure`.


@pytest.fixture
def seeded() -> None:
    """Whoever uses it draws the same numbers, whatever ran before."""
    import torch

    torch.manual_seed(0)


@pytest.fixture(
    params=[
        "eager",
        "sdpa",
        # It is compiled for every shape.
        pytest.param("flex_attention", marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
    ]
)
def implementation(request: pytest.FixtureRequest) -> str:
    """Each implementation of attention in turn."""
    import torch

    name: str = request.param
    if name == "flex_attention" and not torch.cuda.is_available() and not shutil.which("g++"):
        pytest.skip("FlexAttention on a CPU needs a C++ compiler (g++), and there is none")
    return name


def tiny(**overrides: Any) -> VanillaTransformerConfig:
    """A configuration with sizes that differ wherever one could be taken for another."""
    from vanilla_transformer import VanillaTransformerConfig

    arguments: dict[str, Any] = {
        "vocab_size": 29,
        "d_model": 16,
        "d_ff": 24,
        "num_heads": 2,
        # The least that FlexAttention takes.
        "d_k": 16,
        "d_v": 16,
        "num_encoder_layers": 2,
        "num_decoder_layers": 3,
        "dropout": 0.0,
        **overrides,
    }
    return VanillaTransformerConfig(**arguments)


def randomise(module: nn.Module, std: float = 0.3) -> None:
    """No gain of one and no bias of zero, behind which a mistake could hide."""
    import torch

    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * std)


def build(
    cls: type[VanillaTransformerPreTrainedModel], **overrides: Any
) -> VanillaTransformerPreTrainedModel:
    """A randomised model of `tiny` sizes in evaluation mode."""
    model = cls(tiny(**overrides)).eval()
    randomise(model, 0.1)
    return model
