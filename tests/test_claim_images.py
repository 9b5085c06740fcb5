"""Not only text: patches are what they are called, captions are right when they are."""

import dataclasses
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from vanilla_transformer import (
    VanillaTransformerForConditionalGeneration,
    VanillaTransformerForSequenceClassification,
)


@pytest.fixture(scope="module")
def script(repository: Path) -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(repository / "scripts")
        return importlib.import_module("claim_images")


@pytest.fixture(scope="module")
def shapes(script: ModuleType) -> object:
    """Ten pictures that anybody can tell apart: digit n is n bright columns and a row."""
    images = torch.zeros(40, 8, 8)
    labels = torch.arange(40) % 10
    for image, label in zip(images, labels.tolist(), strict=True):
        image[label % 8] = 1.0
        image[:, :2] = label // 8
    return script.Digits(images, labels)


def test_patches_are_read_row_by_row(script: ModuleType) -> None:
    image = torch.arange(8 * 24).float().view(1, 8, 24)
    found = script.patches(image, 4)
    assert found.shape == (1, 12, 16)
    expected = [
        [image[0, y + i, x + j] for i in range(4) for j in range(4)]
        for y in (0, 4)
        for x in range(0, 24, 4)
    ]
    assert found[0].tolist() == torch.tensor(expected).tolist()


def test_captions_and_back(script: ModuleType) -> None:
    text = script.caption([7, 0, 7])
    assert text == "a handwritten seven and zero and seven"
    ids = script.encode(text)
    assert ids[-1] == script.END
    assert script.decode([script.START, *ids, script.PAD, 5]) == text


def test_scenes_show_what_they_say(script: ModuleType, shapes: object) -> None:
    generator = torch.Generator().manual_seed(1)
    counts = set()
    for _ in range(60):
        scene = script.draw_scene(shapes, generator)
        counts.add(len(scene.digits))
        cells = scene.image.split(8, dim=1)
        shown = []
        for cell, row in zip(cells, scene.rows, strict=True):
            if row is None:
                assert not cell.any()
            else:
                assert torch.equal(cell, shapes.images[row])
                shown.append(int(shapes.labels[row]))
        assert shown == scene.digits
    assert counts == {1, 2, 3}


def test_shares_by_the_number_of_digits(script: ModuleType) -> None:
    blank = torch.zeros(1)
    scenes = [script.Scene(blank, (), [1] * count) for count in (1, 2, 2, 3, 3, 3, 3)]
    assert script.by_count([True, True, False, True, True, True, False], scenes) == [100, 50, 75]


def test_the_reader_is_the_model_behind_one_matrix(script: ModuleType, shapes: object) -> None:
    size = script.Size(width=16, layers=1)
    kind = VanillaTransformerForSequenceClassification
    reader = script.build(kind, size, 1, num_labels=10).eval()
    weight, bias = reader.projection.weight, reader.projection.bias
    vectors = script.patches(shapes.images[:3], 4) @ weight.T + bias
    expected = reader.model(inputs_embeds=vectors).logits
    torch.testing.assert_close(reader(shapes.images[:3]).logits, expected)
    # The order of patches counts: they have positions.
    turned = reader.model(inputs_embeds=vectors.flip(1)).logits
    assert not torch.allclose(turned, expected, atol=1e-4)


def test_it_learns_to_classify_and_to_write(
    script: ModuleType, shapes: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = script.Size(width=32, layers=1, updates=60, images=40, tested=12)
    assert script.classify(shapes, shapes, size, 1)["accuracy"] > 90
    # One digit in the middle, so that it takes seconds.
    draw = script.draw_scene

    def single(source: object, generator: torch.Generator) -> object:
        while True:
            scene = draw(source, generator)
            if len(scene.digits) == 1:
                return scene

    monkeypatch.setattr(script, "draw_scene", single)
    monkeypatch.setattr(script, "by_count", lambda right, scenes: sum(right) / len(right))
    generator = torch.Generator().manual_seed(2)
    scenes = [single(shapes, generator) for _ in range(12)]
    row, texts = script.write(shapes, scenes, dataclasses.replace(size, updates=120), 1)
    assert row["right"] > 0.7
    assert all(text.startswith("a handwritten") for text in texts)


def test_captions_are_those_of_transformers_generate(script: ModuleType, shapes: object) -> None:
    size = script.Size(width=16, layers=1)
    reader = script.build(VanillaTransformerForConditionalGeneration, size, 3).eval()
    images = torch.cat([shapes.images[:4]] * 3, dim=2)
    found = script.write_captions(reader, images)
    for image, text in zip(images, found, strict=True):
        ids = [script.START]
        with torch.no_grad():
            for _ in range(10):
                output = reader.model(
                    inputs_embeds=reader.embed(image[None]), decoder_input_ids=torch.tensor([ids])
                )
                ids.append(int(output.logits[0, -1].argmax()))
        assert script.decode(ids[1:]) == text


def test_it_runs(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.setattr(sys, "argv", ["claim_images.py", "--quick", "--output", str(tmp_path)])
    script.main()
    numbers = json.loads((tmp_path / "images.json").read_text())["numbers"]
    assert numbers["training"] == 1198
    assert numbers["unseen"] == 599
    assert len(numbers["examples"]) == 8
    # A linear model does this well on these digits; were rows and labels mixed up, it would not.
    assert numbers["linear"]["accuracy"] > 88
    assert "scikit-learn" in (tmp_path / "images.html").read_text("utf-8")
