"""A loopback Hub for each test, and this process or another one told to talk to it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Fixtures are found by pytest, this module is not: tests are imported by path.
sys.path.insert(0, str(Path(__file__).parent))

from loopback import LoopbackHub, User

ADA, READER, BOB = "hf_ada_writes", "hf_ada_reads", "hf_bob_writes"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LoopbackHub]:
    """A Hub without repositories: `ada` may write, also by another token only read; `bob` too."""
    users = {ADA: User("ada", organizations=("lab",)), READER: User("ada", "read")}
    with LoopbackHub(tmp_path / "hub", **users, **{BOB: User("bob")}) as hub:
        yield hub


@pytest.fixture(params=["xet", "lfs"])
def transfer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each way of large files in turn: by hf_xet, and by HTTP."""
    if request.param == "xet":
        pytest.importorskip("hf_xet", reason="hf_xet is not installed")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", request.param == "lfs")
    return str(request.param)


@pytest.fixture
def online(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[LoopbackHub]:
    """This process as if started with the Hub's address, ada's token and an empty cache.

    The libraries read their settings when they are imported, which is long ago.
    """
    import huggingface_hub
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_XET_CACHE", str(tmp_path / "xet-cache"), raising=False)
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", hub.endpoint)
    monkeypatch.setattr("transformers.utils.hub._hf_api", None)
    monkeypatch.setenv("HF_TOKEN", ADA)
    huggingface_hub.close_session()
    yield hub
    huggingface_hub.close_session()


@pytest.fixture
def clean_environment(hub: LoopbackHub, tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Environment of a process that talks to the Hub; keyword arguments are added."""

    def environment(**added: Any) -> dict[str, str]:
        own = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE", "PYTHONPATH")
        kept = {name: value for name, value in os.environ.items() if name not in own}
        return {
            **kept,
            "HF_HOME": str(tmp_path / "home"),
            "HF_ENDPOINT": hub.endpoint,
            "HF_TOKEN": ADA,
            "OMP_NUM_THREADS": "1",
            **added,
        }

    return environment
