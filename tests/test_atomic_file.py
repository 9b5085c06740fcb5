"""A file that another one reads is never half there."""

from __future__ import annotations

from pathlib import Path

import pytest

from vanilla_transformer.atomic_file import atomic_file


def test_atomic_file_is_whole_or_untouched(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("old")

    def stop_half_way() -> None:
        with atomic_file(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_half_way()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with atomic_file(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_missing_folders_are_made(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "deep" / "er" / "page.html") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "deep" / "er" / "page.html").read_text() == "new"
