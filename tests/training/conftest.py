"""Data of `tiny_run.py`, made once for all tests of training."""

from collections.abc import Iterator

import datasets
import pytest

from tests.training.tiny_run import World, make_world


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    """What every test trains on and none changes; `make_model` fits it."""
    yield make_world()
    datasets.enable_progress_bars()
