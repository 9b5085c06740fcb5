"""Pictures of positions and of the schedule; neighbours by hand."""

from pathlib import Path

import matplotlib.image
import pytest
import torch

from vanilla_transformer import VanillaTransformerConfig, VanillaTransformerForMaskedLM
from vanilla_transformer.inspection.positions import (
    nearest_tokens,
    plot_learning_rate,
    plot_positions,
)
from vanilla_transformer.tokenization import train_tokenizer


@pytest.mark.parametrize("layout", ["interleaved", "concatenated", "concatenated_inclusive"])
def test_positions_are_drawn(tmp_path: Path, layout: str) -> None:
    path = plot_positions(tmp_path / "new" / "p.png", d_model=32, length=40, layout=layout)
    picture = matplotlib.image.imread(path)[..., :3]
    assert picture.shape[0] > 500
    assert picture.std() > 0.1
    assert [entry.name for entry in path.parent.iterdir()] == ["p.png"]
    other = plot_positions(tmp_path / "q.png", d_model=32, length=41, layout=layout)
    assert other.read_bytes() != path.read_bytes()
    with pytest.raises(ValueError, match=r"length \(1\)"):
        plot_positions(tmp_path / "p.png", length=1)


def test_the_schedule_is_drawn(tmp_path: Path) -> None:
    path = plot_learning_rate(tmp_path / "rate.png", [(512, 4000)])
    assert matplotlib.image.imread(path).shape[0] > 500
    assert plot_learning_rate(tmp_path / "b.png", [(512, 8000)]).read_bytes() != path.read_bytes()


def test_neighbours_are_the_nearest_directions() -> None:
    tokenizer = train_tokenizer(["the cat sat"] * 5, 270)
    config = VanillaTransformerConfig(
        vocab_size=len(tokenizer), d_model=8, d_ff=8, num_heads=2, num_encoder_layers=1
    )
    model = VanillaTransformerForMaskedLM(config)
    cat, the = (tokenizer(word, add_special_tokens=False)["input_ids"] for word in (" cat", "the"))
    assert len(cat) == len(the) == 1
    weights = model.get_input_embeddings().weight
    with torch.no_grad():
        weights[the[0]] = 3 * weights[cat[0]]
    found = nearest_tokens(model, tokenizer, "the cat", count=3)
    assert list(found) == ["the", "▁cat"]
    assert found["the"][0] == ("▁cat", pytest.approx(1.0))
    assert len(found["▁cat"]) == 3
    cosines = torch.cosine_similarity(weights[cat[0]][None], weights).detach()
    cosines[cat[0]] = -2
    expected = cosines.sort(descending=True).values[:3]
    assert [value for _, value in found["▁cat"]] == pytest.approx(expected.tolist(), abs=1e-5)
    with pytest.raises(ValueError, match="must hold a token"):
        nearest_tokens(model, tokenizer, "")
