"""`vanilla-transformer export` prints what agrees, and one line for what is wrong."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.export.saved import REFERENCES, SENTENCES, save_model
from vanilla_transformer import cli
from vanilla_transformer.export.torch_export import TorchTranslator

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def export(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs the verb in this process: status, output and errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vanilla-transformer", "export", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert isinstance(ended.value.code, int)
        return ended.value.code, *capfd.readouterr()

    return run


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_bleu_lost_to_fewer_bits_is_printed(dtype: str, export: Command, tmp_path: Path) -> None:
    pytest.importorskip("ctranslate2", reason="CTranslate2 is not installed")
    save_model(tmp_path / "model")
    output = tmp_path / "out"
    arguments = ("--to", "ctranslate2", "--dtype", dtype, "-o", output, "--limit", 20)
    status, out, err = export(tmp_path / "model", *arguments)
    assert (status, err) == (0, "")
    size, *agreements, signature = out.splitlines()
    assert re.fullmatch(rf"{output}: [\d.]+ MB, the model itself [\d.]+ MB", size)
    figure = r"\d+\.\d\d"
    for name, line in zip(("greedy", "beam 4"), agreements, strict=True):
        pattern = (
            rf"{name}: \d+ of 20 sentences have the same ids(, \d+ more the same score)?; "
            rf"BLEU {figure}, the model's own {figure} \([+-]{figure}\)"
        )
        assert re.fullmatch(pattern, line)
    assert signature.startswith("BLEU: nrefs:1|")


def test_sentences_of_two_text_files(export: Command, tmp_path: Path) -> None:
    save_model(tmp_path / "model", num_encoder_layers=1, num_decoder_layers=1)
    files = [tmp_path / "test.en", tmp_path / "test.de"]
    for file, lines in zip(files, (SENTENCES, REFERENCES), strict=True):
        file.write_text("\n".join(lines), "utf-8")
    output = tmp_path / "out"
    status, out, err = export(tmp_path / "model", *files, "--to", "torch", "-o", output)
    assert (status, err) == (0, "")
    assert out.count("12 of 12 sentences have the same ids; BLEU") == 2
    assert TorchTranslator(output).translate(SENTENCES[:1])


@pytest.mark.parametrize(
    ("arguments", "status", "complaint"),
    [
        (("--to", "onnx", "--dtype", "int8"), 2, "--dtype is of no use with --to onnx"),
        (("--to", "torch", "-s", "fr"), 1, "tiny_world has English and German, not 'fr'"),
        (("--to", "keras"), 2, "'keras' is not one of"),
        ((), 2, "--to"),
    ],
    ids=str,
)
def test_wrong_arguments_are_one_line(
    arguments: tuple[str, ...], status: int, complaint: str, export: Command, tmp_path: Path
) -> None:
    save_model(tmp_path / "model")
    found, out, err = export(tmp_path / "model", "-o", tmp_path / "out", *arguments)
    assert (found, out) == (status, "")
    assert complaint in err
    assert len(err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
