"""A trained model and its exports write the same on 1,000 sentences."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from vanilla_transformer.data.tiny_world import generate_translation
from vanilla_transformer.export.ctranslate2 import export_ctranslate2
from vanilla_transformer.export.onnx import export_onnx
from vanilla_transformer.export.torch_export import export_torch
from vanilla_transformer.recipes import changed, execute, find_recipe

PAIRS = list(generate_translation("test", 1000))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the tiny-world recipe, cut short, but not so much that outputs hang by a hair."""
    recipe = changed(find_recipe("tiny-world"), "training.updates", 400)
    output = tmp_path_factory.mktemp("run") / "tiny-world"
    execute(recipe, output)
    return output


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("libraries", "export", "options"),
    [
        (("ctranslate2",), export_ctranslate2, {}),
        (("ctranslate2",), export_ctranslate2, {"precision": "float16"}),
        (("ctranslate2",), export_ctranslate2, {"precision": "int8"}),
        (("onnx", "onnxscript", "onnxruntime"), export_onnx, {}),
        ((), export_torch, {}),
    ],
    ids=["ctranslate2", "ctranslate2-float16", "ctranslate2-int8", "onnx", "torch"],
)
def test_thousand_sentences(
    libraries: tuple[str, ...], export: Any, options: dict[str, Any], trained: Path, tmp_path: Path
) -> None:
    for name in libraries:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    found = export(
        trained,
        tmp_path / "out",
        sentences=[pair["source"] for pair in PAIRS],
        references=[pair["target"] for pair in PAIRS],
        report=print,
        **options,
    )
    for agreement in found.agreements:
        assert agreement.sentences == 1000
        if options.get("precision") == "int8":
            # What a million parameters lose to 8 bits differs by the processor: points, not all.
            assert agreement.bleu > 0.9 * agreement.native_bleu
        elif options:
            # Few lines change, and what they lose is small.
            assert agreement.same > 900
            assert abs(agreement.bleu - agreement.native_bleu) < 1
        else:
            assert agreement.same + agreement.ties == 1000
