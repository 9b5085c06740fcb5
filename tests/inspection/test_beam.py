"""The tree of a beam search, against every hypothesis scored by itself."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from vanilla_transformer import VanillaTransformerConfig, VanillaTransformerForConditionalGeneration
from vanilla_transformer.inspection.beam import BeamNode, beam_tree
from vanilla_transformer.tokenization import train_tokenizer

TEXTS = ["the cat sat on the mat", "a dog and a cat"]


@pytest.fixture(scope="module")
def parts() -> tuple[Any, Any]:
    tokenizer = train_tokenizer(TEXTS * 5, 275)
    torch.manual_seed(4)
    config = VanillaTransformerConfig(
        vocab_size=len(tokenizer),
        d_model=16,
        d_ff=16,
        num_heads=2,
        num_encoder_layers=1,
        num_decoder_layers=1,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        decoder_start_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = VanillaTransformerForConditionalGeneration(config)
    with torch.no_grad():
        model.lm_head.weight.normal_(std=0.8)
        # So that hypotheses end, some early.
        model.lm_head.weight[tokenizer.eos_token_id].mul_(2)
    model.generation_config.max_length = 7
    return model, tokenizer


def paths(
    node: BeamNode, prefix: tuple[int, ...] = ()
) -> Iterator[tuple[tuple[int, ...], BeamNode]]:
    yield prefix, node
    for token, child in node.children.items():
        yield from paths(child, (*prefix, token))


@pytest.mark.parametrize("num_beams", [2, 4])
def test_every_node_has_the_probability_that_the_model_gives_it(
    parts: tuple[Any, Any], num_beams: int
) -> None:
    model, tokenizer = parts
    model.train()
    tree = beam_tree(model, tokenizer, TEXTS[0], num_beams=num_beams)
    assert model.training
    model.eval()
    ids = tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    start = tokenizer.bos_token_id
    seen = list(paths(tree))
    assert len(seen) > 2 * num_beams
    for path, node in seen[1:]:
        decoder_ids = torch.tensor([[start, *path[:-1]]])
        with torch.no_grad():
            scores = model(ids, decoder_input_ids=decoder_ids).logits[0].log_softmax(-1)
        expected = scores.gather(1, torch.tensor(path)[:, None]).sum()
        assert node.log_probability == pytest.approx(float(expected), abs=1e-4)
    found = model.generate(
        ids, num_beams=num_beams, num_return_sequences=num_beams, output_scores=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    ended = sorted((node.rank, path, node.score) for path, node in seen if node.rank)
    assert [rank for rank, _, _ in ended] == list(range(1, num_beams + 1))
    for (_, path, score), row, value in zip(
        ended, found.sequences.tolist(), found.sequences_scores.tolist(), strict=True
    ):
        assert row[1 : len(path) + 1] == list(path)
        assert set(row[len(path) + 1 :]) <= {model.config.pad_token_id}
        assert score == pytest.approx(value, abs=1e-5)


def test_a_beam_of_one_is_no_tree(parts: tuple[Any, Any]) -> None:
    with pytest.raises(ValueError, match=r"num_beams \(1\) must be at least 2"):
        beam_tree(*parts, TEXTS[0], num_beams=1)
    with pytest.raises(ValueError, match="must hold some text"):
        beam_tree(*parts, " ")
