"""torch's own Transformers, as people put them to use, and the Annotated Transformer's refusal."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vanilla_transformer import VanillaTransformerForConditionalGeneration
from vanilla_transformer.conversion import convert
from vanilla_transformer.conversion.parity import random_batches
from vanilla_transformer.conversion.source import Checkpoint
from vanilla_transformer.conversion.torch_transformer import (
    AnnotatedTransformerFamily,
    TorchTransformerFamily,
)
from vanilla_transformer.conversion.weights import build_model

pytestmark = pytest.mark.filterwarnings("ignore:enable_nested_tensor")

FAMILY = TorchTransformerFamily()
PAD, BOS, EOS = 1, 2, 3
OPTIONS: dict[str, Any] = {
    "nhead": 2,
    "norm_first": True,
    "scale_embedding": True,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}


class Table(nn.Module):
    """Positions as PyTorch's tutorials have them: a buffer."""

    def __init__(self, d: int):
        super().__init__()
        angles = torch.arange(60)[:, None] * 10000 ** (-torch.arange(0, d, 2) / d)
        table = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)
        self.register_buffer("pos_embedding", table.unsqueeze(1))


class Embedding(nn.Module):
    def __init__(self, size: int, d: int):
        super().__init__()
        self.embedding = nn.Embedding(size, d)


class Tutorial(nn.Module):
    """The names of PyTorch's translation tutorial, all of it in `nn.Transformer`."""

    scale, sizes, norm_first = True, (23, 31), True

    def __init__(self, d: int = 16, **options: Any):
        super().__init__()
        self.transformer = nn.Transformer(
            d, 2, 2, 3, 48, batch_first=True, norm_first=self.norm_first, **options
        )
        self.generator = nn.Linear(d, self.sizes[1])
        self.src_tok_emb = Embedding(self.sizes[0], d)
        self.tgt_tok_emb = Embedding(self.sizes[1], d)
        self.positional_encoding = Table(d)

    def embed(self, side: str, ids: Tensor) -> Tensor:
        table = self.src_tok_emb if side == "src" else self.tgt_tok_emb
        x = table.embedding(ids) * math.sqrt(table.embedding.embedding_dim)
        return x + self.positional_encoding.pos_embedding[: ids.shape[1], 0]

    def encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.transformer.encoder(self.embed("src", ids), src_key_padding_mask=mask == 0)

    def logits(self, ids: Tensor, mask: Tensor, decoder_ids: Tensor) -> Tensor:
        causal = nn.Transformer.generate_square_subsequent_mask(decoder_ids.shape[1])
        states = self.transformer.decoder(
            self.embed("tgt", decoder_ids),
            self.encode(ids, mask),
            tgt_mask=causal,
            memory_key_padding_mask=mask == 0,
        )
        return self.generator(states)


class Stacks(Tutorial):
    """Post-norm of two stacks without final norms, learned positions, no scaling."""

    sizes = (23, 23)

    def __init__(self) -> None:
        nn.Module.__init__(self)
        shape: Any = {"d_model": 32, "nhead": 4, "dim_feedforward": 40, "activation": "gelu"}
        encoder = nn.TransformerEncoderLayer(**shape, batch_first=True, layer_norm_eps=1e-4)
        decoder = nn.TransformerDecoderLayer(**shape, batch_first=True, layer_norm_eps=1e-4)
        self.transformer = nn.Module()
        self.transformer.encoder = nn.TransformerEncoder(encoder, 3, enable_nested_tensor=False)
        self.transformer.decoder = nn.TransformerDecoder(decoder, 1)
        self.embedding = nn.Embedding(23, 32)
        self.pos_embedding = nn.Embedding(60, 32)
        self.fc_out = nn.Linear(32, 23, bias=False)
        self.generator = self.fc_out

    def embed(self, side: str, ids: Tensor) -> Tensor:
        return self.embedding(ids) + self.pos_embedding.weight[: ids.shape[1]]

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        found = super().state_dict(*args, **kwargs)
        return {name: tensor for name, tensor in found.items() if "generator" not in name}


class Default(Tutorial):
    """As the tutorial has it: post-norm, and the norms after both stacks all the same."""

    norm_first = False


class Tied(Tutorial):
    """One matrix, and sinusoids that are computed."""

    sizes = (23, 23)

    def __init__(self) -> None:
        super().__init__(layer_norm_eps=1e-6)
        self.generator = nn.Linear(16, 23, bias=False)
        self.tgt_tok_emb = self.src_tok_emb
        self.generator.weight = self.src_tok_emb.embedding.weight

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        found = super().state_dict(*args, **kwargs)
        return {name: tensor for name, tensor in found.items() if "positional" not in name}


POST = {"norm_first": False, "nhead": 4, "activation": "gelu", "layer_norm_eps": 1e-4}
CASES: dict[str, tuple[type[Tutorial], dict[str, Any]]] = {
    "tutorial": (Tutorial, OPTIONS),
    "default": (Default, OPTIONS | {"norm_first": False}),
    "stacks": (Stacks, OPTIONS | POST | {"scale_embedding": False}),
    "tied": (Tied, OPTIONS | {"position_encoding": "interleaved", "layer_norm_eps": 1e-6}),
}


def make(case: str, seed: int = 0) -> Tutorial:
    torch.manual_seed(seed)
    model = CASES[case][0]().eval()
    for parameter in model.parameters():
        parameter.data = 0.3 * torch.randn_like(parameter)
    if case == "tied":
        model.generator.weight = model.src_tok_emb.embedding.weight
    return model


def checkpoint_of(case: str = "tutorial", **changes: Any) -> Checkpoint:
    return Checkpoint(dict(make(case).state_dict()), CASES[case][1] | changes)


def greedy(model: Tutorial, ids: Tensor, mask: Tensor, longest: int) -> list[list[int]]:
    """As the tutorial decodes: all of it at every step."""
    out = torch.full((len(ids), 1), BOS)
    for _ in range(longest):
        out = torch.cat((out, model.logits(ids, mask, out)[:, -1].argmax(-1, keepdim=True)), dim=1)
    rows = out[:, 1:].tolist()
    return [row[: [*row, EOS].index(EOS) + 1] for row in rows]


def beams(model: Tutorial, ids: Tensor, beam: int, longest: int) -> list[int]:
    """The likeliest hypothesis of a search by total log-probability, for one sentence."""
    alive: list[tuple[float, list[int]]] = [(0.0, [])]
    ended: list[tuple[float, list[int]]] = []
    for length in range(1, longest + 1):
        starts = torch.tensor([[BOS, *tokens] for _, tokens in alive])
        sources = ids.expand(len(alive), -1)
        scores = model.logits(sources, torch.ones_like(sources), starts)[:, -1].log_softmax(-1)
        found = [
            (before + score, [*tokens, i])
            for (before, tokens), row in zip(alive, scores.tolist(), strict=True)
            for i, score in enumerate(row)
        ]
        found.sort(key=lambda item: -item[0])
        ended += [item for item in found[:beam] if item[1][-1] == EOS or length == longest]
        ended = sorted(ended, key=lambda item: -item[0])[:beam]
        alive = [item for item in found[: 2 * beam] if item[1][-1] != EOS][:beam]
        if len(ended) == beam and alive[0][0] <= ended[-1][0]:
            break
    return ended[0][1]


@torch.no_grad()
@pytest.mark.parametrize("layout", ["pt", "nested", "safetensors"])
@pytest.mark.parametrize("case", CASES)
def test_torch_itself_agrees(tmp_path: Path, case: str, layout: str) -> None:
    theirs = make(case)
    state = theirs.state_dict()
    path = tmp_path / ("model.safetensors" if layout == "safetensors" else "model.pt")
    if layout == "safetensors":
        save_file({name: tensor.clone() for name, tensor in state.items()}, path)
    else:
        torch.save({"epoch": 3, "model_state_dict": state} if layout == "nested" else state, path)
    options = path.with_suffix(".json") if layout == "nested" else tmp_path / "config.json"
    options.write_text(json.dumps(CASES[case][1]), "utf-8")
    assert FAMILY.recognises(path)
    assert FAMILY.recognises(tmp_path)
    checkpoint = FAMILY.read(tmp_path)
    converted = FAMILY.convert(checkpoint)
    assert converted.config.share_embeddings == (case == "tied")
    model = build_model(converted)
    reference = FAMILY.reference(checkpoint)
    for ids, mask, decoder_ids in random_batches(model):
        found = model(ids, attention_mask=mask, decoder_input_ids=decoder_ids)
        for source in (theirs, reference):
            states = found.encoder_last_hidden_state - source.encode(ids, mask)
            assert states[mask.bool()].abs().max() <= 1e-5
            logits = found.logits - source.logits(ids, mask, decoder_ids)
            assert logits.abs().max() <= 1e-5


def generated(
    model: VanillaTransformerForConditionalGeneration, ids: Tensor, mask: Tensor, **settings: Any
) -> list[list[int]]:
    out = model.generate(ids, attention_mask=mask, max_length=13, **settings)
    return [row[: [*row, EOS].index(EOS) + 1] for row in out[:, 1:].tolist()]


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_searches_choose_what_torch_chooses(case: str) -> None:
    model, theirs = build_model(FAMILY.convert(checkpoint_of(case))), make(case)
    ids, mask, _ = next(iter(random_batches(model, lengths=(9,), sentences=6, seed=3)))
    assert generated(model, ids, mask) == greedy(theirs, ids, mask, 12)
    expected = [beams(theirs, row[:n], 4, 12) for row, n in zip(ids, mask.sum(1), strict=True)]
    assert generated(model, ids, mask, num_beams=4, length_penalty=0.0) == expected


def test_the_whole_procedure_proves_itself(tmp_path: Path) -> None:
    torch.save(make("tutorial").state_dict(), tmp_path / "model.pth")
    (tmp_path / "config.json").write_text(json.dumps(OPTIONS), "utf-8")
    result = convert(tmp_path / "model.pth", tmp_path / "out")
    assert result.family.name == "torch"
    assert result.is_live
    assert result.parity.log_probabilities <= 1e-5
    assert "No tokenizer" in result.remarks[0]


def test_options_that_are_missing_are_listed() -> None:
    checkpoint = checkpoint_of()
    checkpoint.options = {"norm_first": True}
    names = "nhead .*, scale_embedding .*, pad_token_id .*, bos_token_id .*, eos_token_id"
    with pytest.raises(ValueError, match=f"does not say {names}.*config.json"):
        FAMILY.convert(checkpoint)
    with pytest.raises(ValueError, match="options heads of the state dict are not known"):
        FAMILY.convert(checkpoint_of(heads=2))
    with pytest.raises(ValueError, match=r"no table for its positions; .*position_encoding"):
        FAMILY.convert(checkpoint_of("tied", position_encoding=None))


def test_a_norm_after_one_stack_alone_is_refused() -> None:
    checkpoint = checkpoint_of()
    for part in ("weight", "bias"):
        del checkpoint.tensors[f"transformer.decoder.norm.{part}"]
    with pytest.raises(ValueError, match="norm after one of its two stacks alone"):
        FAMILY.convert(checkpoint)


def rename(checkpoint: Checkpoint, old: str, new: str) -> None:
    checkpoint.tensors[new] = checkpoint.tensors.pop(old)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.options.update(activation="tanh"), "activation='tanh'"),
        (lambda c: c.options.update(nhead=3), "d_model .16. must be divisible by num_heads"),
        (
            lambda c: c.tensors.pop("transformer.encoder.layers.1.linear2.bias"),
            r"missing: transformer\.encoder\.layers\.1\.linear2\.bias",
        ),
        (lambda c: c.tensors.update(extra=torch.ones(2)), "unknown to this architecture: extra"),
        (
            lambda c: c.tensors.update({"generator.bias": torch.ones(30)}),
            r"generator\.bias is \[30\], not \[31\]",
        ),
        (
            lambda c: rename(c, "generator.weight", "mystery.weight"),
            "the output layer cannot be told: none of .*mystery.weight",
        ),
        (
            lambda c: rename(c, "src_tok_emb.embedding.weight", "mystery.weight"),
            "the source embedding cannot be told: none",
        ),
        (
            lambda c: [c.tensors.pop(n) for n in list(c.tensors) if ".decoder." in n],
            "1 encoders and 0 decoders",
        ),
    ],
)
def test_what_does_not_fit_is_refused(change: Any, message: str) -> None:
    checkpoint = checkpoint_of()
    change(checkpoint)
    with pytest.raises(ValueError, match=message):
        FAMILY.convert(checkpoint)


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (nn.Linear(2, 2), "holds objects of .*run code"),
        ({"weights": [1, 2]}, "is no state dict"),
        (None, "truncated"),
    ],
)
def test_files_that_are_no_state_dicts_are_refused(
    tmp_path: Path, stored: Any, message: str
) -> None:
    path = tmp_path / "model.pt"
    torch.save(make("tutorial").state_dict() if stored is None else stored, path)
    if stored is None:
        path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(ValueError, match=message):
        FAMILY.read(path)
    path.unlink()
    with pytest.raises(ValueError, match="holds no file of tensors"):
        FAMILY.read(tmp_path)


def test_the_annotated_transformer_is_refused_with_the_reason(tmp_path: Path) -> None:
    names = ("encoder.layers.0.self_attn.linears.0.weight", "encoder.layers.0.sublayer.0.norm.a_2")
    torch.save({name: torch.ones(2) for name in names}, tmp_path / "model.pt")
    family = AnnotatedTransformerFamily()
    assert family.recognises(tmp_path / "model.pt")
    assert not FAMILY.recognises(tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"unbiased standard deviation .*replace its class"):
        convert(tmp_path / "model.pt", tmp_path / "out")
    assert not (tmp_path / "out").exists()
