"""What every test stands on: no network, a cache of its own, and the place of the shared data."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

_CACHE = pytest.StashKey[str]()


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
