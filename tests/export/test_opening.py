"""An export that is not whole is refused with a ValueError that names it, whatever is wrong."""

import json
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.export.saved import SENTENCES, save_model
from vanilla_transformer.export.ctranslate2 import export_ctranslate2
from vanilla_transformer.export.onnx import export_onnx
from vanilla_transformer.export.opening import is_export, open_export
from vanilla_transformer.export.torch_export import export_torch
from vanilla_transformer.export.translator import RECORD
from vanilla_transformer.generation import DecodingSettings, TranslationReport

EXPORTS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "ctranslate2": (export_ctranslate2, ("ctranslate2",)),
    "onnx": (export_onnx, ("onnx", "onnxscript", "onnxruntime")),
    "torch": (export_torch, ()),
}
WEIGHTS = {
    "ctranslate2": ("model.bin",),
    "onnx": ("encoder.onnx", "decoder.onnx", "encoder.onnx.data", "decoder.onnx.data"),
    "torch": ("encoder.pt2", "decoder.pt2"),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Writes an export of a format once."""
    directory = tmp_path_factory.mktemp("exported")
    save_model(directory / "model", num_encoder_layers=1, num_decoder_layers=1)

    def write(name: str) -> Path:
        export, libraries = EXPORTS[name]
        for library in libraries:
            pytest.importorskip(library, reason=f"{library} is not installed")
        if not (directory / name).exists():
            export(directory / "model", directory / name, sentences=SENTENCES)
        return directory / name

    return write


@pytest.mark.parametrize(
    "name",
    ["ctranslate2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("onnx", "torch"))],
)
def test_files_missing_cut_short_or_edited(
    name: str, exported: Callable[[str], Path], tmp_path: Path
) -> None:
    whole = exported(name)
    assert is_export(whole)
    assert not is_export(whole.parent / "model")
    translator = open_export(whole)
    greedy = DecodingSettings(num_beams=1)
    report = TranslationReport()
    lines = [SENTENCES[0], "", SENTENCES[1] * 40, SENTENCES[1]]
    found = list(translator.stream(lines, greedy, max_source_tokens=100, window=2, report=report))
    assert found == [
        *translator.translate([lines[0], ""], greedy),
        "",
        *translator.translate(lines[3:], greedy),
    ]
    assert (report.lines, report.empty, list(report.skipped)) == (4, 1, [3])
    with pytest.raises(ValueError, match=r"window \(0\)"):
        list(translator.stream(lines, window=0))

    def broken(change: Callable[[Path], None]) -> str:
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(whole, copy)
        change(copy)
        with pytest.raises(ValueError, match=re.escape(str(copy))) as raised:
            open_export(copy)
        return str(raised.value)

    def remove(file: str, copy: Path) -> None:
        (copy / file).unlink()

    def rewrite(file: str, content: bytes) -> None:
        def change(copy: Path) -> None:
            (copy / file).write_bytes(content)

        broken(change)

    for file in (*WEIGHTS[name], "tokenizer.json", RECORD):
        broken(partial(remove, file))
        size = (whole / file).stat().st_size
        for length in (0, size // 2):
            rewrite(file, (whole / file).read_bytes()[:length])

    def edit(file: str, **values: Any) -> str:
        def change(copy: Path) -> None:
            content = json.loads((copy / file).read_text("utf-8"))
            (copy / file).write_text(json.dumps(content | values), "utf-8")

        return broken(change)

    assert "names no format" in edit(RECORD, format="keras")
    assert "names no format" in edit(RECORD, format=["onnx"])
    for value in ("many", -1, 0, 1.5, True):
        assert f"max_positions ({value!r})" in edit(RECORD, max_positions=value)
    for file in (RECORD, "generation_config.json"):
        for text in ("", "[]", '"text"', "[" * 100_000, "\\udc00"):
            rewrite(file, text.encode())
    edit("generation_config.json", num_beams="four")
    if name == "ctranslate2":
        assert "min_new_tokens ('many')" in edit("generation_config.json", min_new_tokens="many")
        assert "max_length (-5)" in edit("generation_config.json", max_length=-5)
        edit("generation_config.json", suppress_tokens=[10**9])
        for text in ("", "{}", "[1, 2]", '["a"]'):
            rewrite("shared_vocabulary.json", text.encode())
    else:
        # A number of layers that would take hours to build.
        complaint = edit("config.json", num_decoder_layers=10**9)
        assert "num_decoder_layers (1000000000)" in complaint
        assert "must be 1" in complaint
        edit("config.json", d_model="wide")
        edit("config.json", num_heads=0)
        edit("config.json", model_type="bert")
