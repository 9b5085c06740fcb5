"""The Transformer of OpenNMT-py and eole from its documented equations, in a page.

It shares no code with the package, reads the tensors under each toolkit's own names, and runs one
sentence at a time without padding, caches or masks other than that of the future.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

UNK, PAD, BOS, EOS = range(4)
SPECIAL = ["<unk>", "<blank>", "<s>", "</s>"]

BASE: dict[str, Any] = {
    "d": 16,
    "heads": 2,
    "ff": 40,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "activation": "relu",
    "eps": 1e-6,
    "layout": "SinusoidalInterleaved",
    "attention_bias": False,
    "ffn_bias": False,
    "share_embeddings": False,
    "share_output": False,
    "sources": 23,
    "targets": 29,
}

_OPENNMT = {
    "encoder.embedding": "encoder.embeddings.make_embedding.emb_luts.0.weight",
    "decoder.embedding": "decoder.embeddings.make_embedding.emb_luts.0.weight",
    "encoder.table": "encoder.embeddings.make_embedding.pe.pe",
    "decoder.table": "decoder.embeddings.make_embedding.pe.pe",
    "encoder.layer": "encoder.transformer.{}",
    "decoder.layer": "decoder.transformer_layers.{}",
    "encoder.norms": ["layer_norm", "feed_forward.layer_norm"],
    "decoder.norms": ["layer_norm_1", "layer_norm_2", "feed_forward.layer_norm"],
    "ffn": ["feed_forward.w_1", "feed_forward.w_2"],
}
_EOLE = {
    "encoder.embedding": "src_emb.embeddings.weight",
    "decoder.embedding": "tgt_emb.embeddings.weight",
    "encoder.table": "src_emb.pe.pe",
    "decoder.table": "tgt_emb.pe.pe",
    "encoder.layer": "encoder.transformer_layers.{}",
    "decoder.layer": "decoder.transformer_layers.{}",
    "encoder.norms": ["input_layernorm", "post_attention_layernorm"],
    "decoder.norms": ["input_layernorm", "precontext_layernorm", "post_attention_layernorm"],
    "ffn": ["mlp.gate_up_proj", "mlp.down_proj"],
}
NAMES: dict[str, dict[str, Any]] = {"opennmt": _OPENNMT, "eole": _EOLE}


def make_tensors(toolkit: str, case: Mapping[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """What a checkpoint of the toolkit with these options holds; the shared ones once."""
    names, d, ff = NAMES[toolkit], case["d"], case["ff"]
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, out: int, into: int, has_bias: bool) -> None:
        shapes[f"{name}.weight"] = (out, into)
        if has_bias:
            shapes[f"{name}.bias"] = (out,)

    for side, rows in (("encoder", case["sources"]), ("decoder", case["targets"])):
        if side == "encoder" or not case["share_embeddings"]:
            shapes[names[f"{side}.embedding"]] = (rows, d)
        for number in range(case[f"{side}_layers"]):
            layer = names[f"{side}.layer"].format(number)
            for attention in ["self_attn"] + ["context_attn"] * (side == "decoder"):
                for part in ("linear_keys", "linear_values", "linear_query", "final_linear"):
                    linear(f"{layer}.{attention}.{part}", d, d, case["attention_bias"])
            linear(f"{layer}.{names['ffn'][0]}", ff, d, case["ffn_bias"])
            linear(f"{layer}.{names['ffn'][1]}", d, ff, case["ffn_bias"])
            for norm in names[f"{side}.norms"]:
                shapes |= {f"{layer}.{norm}.weight": (d,), f"{layer}.{norm}.bias": (d,)}
        shapes |= {f"{side}.layer_norm.weight": (d,), f"{side}.layer_norm.bias": (d,)}
    linear("generator", case["targets"], d, True)
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: 0.4 * torch.randn(s, generator=generator) for name, s in shapes.items()}
    # Pads and ends are likely, so that searches have to deal with them.
    tensors["generator.bias"][[PAD, EOS]] += torch.tensor([1.0, 2.0])
    if case["share_output"]:
        del tensors["generator.weight"]
    for side in ("encoder", "decoder"):
        rows = [_sinusoid(position, d, case["layout"]) for position in range(64)]
        tensors[names[f"{side}.table"]] = torch.stack(rows).float().unsqueeze(1)
    return tensors


def _sinusoid(position: int, d: int, layout: str) -> Tensor:
    if layout == "SinusoidalConcat":
        angles = [position / 10000 ** (i / (d // 2 - 1)) for i in range(d // 2)]
        values = [*map(math.sin, angles), *map(math.cos, angles)]
    else:
        angles = [position / 10000 ** (2 * i / d) for i in range(d // 2)]
        values = [wave(angle) for angle in angles for wave in (math.sin, math.cos)]
    return torch.tensor(values, dtype=torch.double)


class NaiveTransformer:
    """Encoder states and logits of a checkpoint's tensors."""

    name = "the documented equations"

    def __init__(self, toolkit: str, tensors: Mapping[str, Tensor], case: Mapping[str, Any]):
        self.names, self.case = NAMES[toolkit], case
        self.tensors = {name: tensor.double() for name, tensor in tensors.items()}
        source = self.tensors[self.names["encoder.embedding"]]
        target = self.tensors.setdefault(self.names["decoder.embedding"], source)
        self.tensors.setdefault("generator.weight", target)

    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = torch.zeros(*input_ids.shape, self.case["d"], dtype=torch.double)
        for row, (ids, mask) in enumerate(zip(input_ids, attention_mask, strict=True)):
            n = int(mask.sum())
            states[row, :n] = self._run("encoder", ids[:n], None)
        return states

    def logits(
        self, input_ids: Tensor, attention_mask: Tensor, decoder_input_ids: Tensor
    ) -> Tensor:
        states = self.encode(input_ids, attention_mask)
        rows = zip(states, attention_mask, decoder_input_ids, strict=True)
        return torch.stack([self._decode(ids, s[: int(m.sum())]) for s, m, ids in rows])

    def _decode(self, ids: Tensor, memory: Tensor) -> Tensor:
        return self._linear("generator", self._run("decoder", ids, memory))

    def _run(self, side: str, ids: Tensor, memory: Tensor | None) -> Tensor:
        d = self.case["d"]
        x = math.sqrt(d) * self.tensors[self.names[f"{side}.embedding"]][ids]
        x = x + torch.stack([_sinusoid(p, d, self.case["layout"]) for p in range(len(ids))])
        for number in range(self.case[f"{side}_layers"]):
            layer = self.names[f"{side}.layer"].format(number)
            norms = [f"{layer}.{norm}" for norm in self.names[f"{side}.norms"]]
            y = self._norm(norms[0], x)
            x = x + self._attend(f"{layer}.self_attn", y, y, memory is not None)
            if memory is not None:
                y = self._norm(norms[1], x)
                x = x + self._attend(f"{layer}.context_attn", y, memory, False)
            up, down = (f"{layer}.{name}" for name in self.names["ffn"])
            y = self._activate(self._linear(up, self._norm(norms[-1], x)))
            x = x + self._linear(down, y)
        return self._norm(f"{side}.layer_norm", x)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        y = x @ self.tensors[f"{name}.weight"].T
        bias = self.tensors.get(f"{name}.bias")
        return y if bias is None else y + bias

    def _activate(self, x: Tensor) -> Tensor:
        if self.case["activation"] == "gelu":
            return x * (1 + torch.erf(x / math.sqrt(2))) / 2
        return x / (1 + torch.exp(-x)) if self.case["activation"] == "silu" else x.clamp(min=0)

    def _norm(self, name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + self.case["eps"]).sqrt()
        return scaled * self.tensors[f"{name}.weight"] + self.tensors[f"{name}.bias"]

    def _attend(self, name: str, x: Tensor, memory: Tensor, is_causal: bool) -> Tensor:
        heads = self.case["heads"]
        q, k, v = (
            self._linear(f"{name}.linear_{part}", states).unflatten(-1, (heads, -1)).transpose(0, 1)
            for part, states in (("query", x), ("keys", memory), ("values", memory))
        )
        scores = q @ k.transpose(1, 2) / math.sqrt(self.case["d"] // heads)
        if is_causal:
            future = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
            scores = scores.masked_fill(future, -math.inf)
        mixed = (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)
        return self._linear(f"{name}.final_linear", mixed)

    def next_scores(self, ids: Tensor) -> Callable[[list[int]], Tensor]:
        """Of a sentence: log-probabilities of what follows the tokens so far."""
        memory = self._run("encoder", ids, None)
        return lambda tokens: self._decode(torch.tensor([BOS, *tokens]), memory)[-1].log_softmax(-1)


def search(score: Callable[[list[int]], Tensor], beam: int, longest: int) -> list[int]:
    """The best of at most `longest` tokens by log-probability per token, `</s>` among them.

    As in transformers, and unlike the toolkits' own: a sentence is done when no hypothesis that
    goes on is better, were it to end now, than the worst of `beam` ended ones.
    """
    alive: list[tuple[float, list[int]]] = [(0.0, [])]
    ended: list[tuple[float, list[int]]] = []
    for length in range(1, longest + 1):
        candidates = []
        for total, tokens in alive:
            candidates += [(total + p, [*tokens, i]) for i, p in enumerate(score(tokens).tolist())]
        candidates.sort(key=lambda item: -item[0])
        for total, tokens in candidates[:beam]:
            if tokens[-1] == EOS or length == longest:
                ended.append((total / length, tokens))
        ended = sorted(ended, key=lambda item: -item[0])[:beam]
        alive = [item for item in candidates[: 2 * beam] if item[1][-1] != EOS][:beam]
        if len(ended) == beam and alive[0][0] / length <= ended[-1][0]:
            break
    return ended[0][1]
