"""What small models start from."""

import pytest
import torch

from vanilla_transformer import (
    VanillaTransformerConfig,
    VanillaTransformerForConditionalGeneration,
)
from vanilla_transformer.training.initialization import align_keys_with_queries


def build() -> VanillaTransformerForConditionalGeneration:
    torch.manual_seed(0)
    return VanillaTransformerForConditionalGeneration(
        VanillaTransformerConfig(vocab_size=20, d_model=64, d_ff=8, num_heads=2)
    )


def test_keys_resemble_queries_by_as_much_and_nothing_else_changes() -> None:
    model, before = build(), dict(build().named_parameters())
    align_keys_with_queries(model, 0.9)
    for name, parameter in model.named_parameters():
        if not name.endswith("self_attn.k_proj.weight"):
            assert torch.equal(parameter, before[name]), name
            continue
        queries = before[name.replace("k_proj", "q_proj")]
        pair = torch.stack((parameter.flatten(), queries.flatten())).detach()
        assert torch.corrcoef(pair)[0, 1] == pytest.approx(0.9, abs=0.02)
        assert float(parameter.detach().std()) == pytest.approx(float(before[name].std()), rel=0.05)


def test_a_token_finds_its_like() -> None:
    """With both ends of a head alike an equal token scores far above the others."""
    model = build()
    align_keys_with_queries(model, 1.0)
    attention = model.model.encoder.layers[0].self_attn
    torch.manual_seed(1)
    tokens = torch.randn(50, 64)
    tokens[40] = tokens[3]
    queries, keys = (
        projection(tokens).view(50, 2, 32) for projection in (attention.q_proj, attention.k_proj)
    )
    for head in range(2):
        scores = keys[:, head] @ queries[3, head]
        assert set(scores.topk(2).indices.tolist()) == {3, 40}


def test_no_correlation_changes_nothing() -> None:
    model, before = build(), build().state_dict()
    align_keys_with_queries(model, 0.0)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("correlation", [-0.1, 1.5])
def test_a_correlation_out_of_range_is_refused(correlation: float) -> None:
    with pytest.raises(ValueError, match=r"must lie between 0 and 1; try 0\.9"):
        align_keys_with_queries(build(), correlation)
