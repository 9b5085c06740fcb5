"""`vanilla-transformer translate` with a directory that `export` has written."""

import sys
from pathlib import Path

import pytest

from tests.export.saved import SENTENCES, save_model
from vanilla_transformer import cli
from vanilla_transformer.export.ctranslate2 import export_ctranslate2


def test_an_export_translates_as_its_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ctranslate2", reason="CTranslate2 is not installed")
    save_model(tmp_path / "model")
    export_ctranslate2(tmp_path / "model", tmp_path / "out", sentences=SENTENCES)
    (tmp_path / "in.txt").write_text("\n".join([*SENTENCES, "", "a " * 300]) + "\n", "utf-8")

    def run(model: str, *arguments: str) -> tuple[int, str]:
        command = ["vanilla-transformer", "translate", str(tmp_path / model)]
        monkeypatch.setattr(sys, "argv", [*command, str(tmp_path / "in.txt"), *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert isinstance(ended.value.code, int)
        return ended.value.code, capfd.readouterr().err

    options = ("--beams", "1", "--max-source-tokens", "200", "--window", "5", "-o")
    for model in ("model", "out"):
        status, err = run(model, *options, str(tmp_path / f"{model}.txt"))
        assert status == 0
        assert "14 lines, 1 of them empty, 1 too long" in err
    written = (tmp_path / "out.txt").read_text("utf-8")
    assert written == (tmp_path / "model.txt").read_text("utf-8")
    assert len(written.splitlines()) == 14
    assert any(written.splitlines())
    for option in (("--int8",), ("--n-best", "2"), ("--device", "cpu"), ("--sample",)):
        status, err = run("out", *option)
        assert status == 2
        assert f"{option[0]} is of no use with an exported model" in err
