"""Tensor2Tensor's Transformer and its subwords from their definitions, each in a page.

They share no code with the package. The model reads tensors under Tensor2Tensor's own names, and
runs one sentence at a time in double precision, without padding, caches or masks other than that
of the future.
"""

import math
import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

PAD, EOS = 0, 1

BASE: dict[str, Any] = {
    "d": 16,
    "heads": 2,
    "ff": 24,
    "keys": 0,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "norm": "pre",
    "rows": 29,
    "shards": 16,
    "kind": "shared",
    "space": 8,
    "scope": "transformer/body",
}


def make_tensors(case: Mapping[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """What a checkpoint with these options holds, optimizer and counters included."""
    d, ff, inner = case["d"], case["ff"], case["keys"] or case["d"]
    shapes: dict[str, tuple[int, ...]] = {}
    kinds = {
        "shared": ["shared"],
        "shared inputs": ["shared", "softmax"],
        "apart": ["input_emb", "target_emb", "softmax"],
    }[case["kind"]]
    for kind in kinds:
        for i in range(case["shards"]):
            rows = case["rows"] // case["shards"] + (i < case["rows"] % case["shards"])
            shapes[f"transformer/symbol_modality_{case['rows']}_{d}/{kind}/weights_{i}"] = (rows, d)
    after = "layer_prepostprocess" if case["norm"] == "pre" else "layer_postprocess"

    def norm(prefix: str) -> None:
        for part in ("scale", "bias"):
            shapes[f"{prefix}/{after}/layer_norm/layer_norm_{part}"] = (d,)

    for side in ("encoder", "decoder"):
        stack = f"{case['scope']}/{side}"
        for number in range(case[f"{side}_layers"]):
            layer = f"{stack}/layer_{number}"
            for attention in ["self_attention"] + ["encdec_attention"] * (side == "decoder"):
                prefix = f"{layer}/{attention}"
                for part in "qkv":
                    shapes[f"{prefix}/multihead_attention/{part}/kernel"] = (d, inner)
                shapes[f"{prefix}/multihead_attention/output_transform/kernel"] = (inner, d)
                norm(prefix)
            shapes |= {f"{layer}/ffn/conv1/kernel": (d, ff), f"{layer}/ffn/conv1/bias": (ff,)}
            shapes |= {f"{layer}/ffn/conv2/kernel": (ff, d), f"{layer}/ffn/conv2/bias": (d,)}
            norm(f"{layer}/ffn")
        if case["norm"] == "pre":
            norm(stack)
    space = f"{case['scope']}/target_space_embedding/kernel"
    if case["space"] is not None:
        shapes[space] = (32, d)
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: 0.4 * torch.randn(s, generator=generator) for name, s in shapes.items()}
    if case["space"] is not None:
        moments = torch.zeros(32, d)
        moments[case["space"]] = 1e-3
        tensors[f"training/{space}/Adam"] = tensors[f"training/{space}/Adam_1"] = moments
    tensors["global_step"] = torch.tensor(7)
    tensors["losses_avg/problem_0/total_loss"] = torch.tensor(1.5)
    tensors["training/beta1_power"] = torch.tensor(0.5)
    tensors[f"training/{case['scope']}/encoder/layer_0/ffn/conv1/bias/Adam"] = torch.zeros(ff)
    return tensors


class NaiveTransformer:
    """Encoder states and logits of a checkpoint's tensors."""

    name = "the equations of Tensor2Tensor"

    def __init__(self, tensors: Mapping[str, Tensor], case: Mapping[str, Any]):
        self.case = case
        self.tensors = {
            re.sub(r"layer_(pre)?postprocess/", "", name.removeprefix(f"{case['scope']}/")): tensor
            for name, tensor in tensors.items()
        }
        self.tensors = {name: tensor.double() for name, tensor in self.tensors.items()}

    def _matrix(self, *kinds: str) -> Tensor:
        prefix = f"transformer/symbol_modality_{self.case['rows']}_{self.case['d']}"
        for kind in kinds:
            names = [f"{prefix}/{kind}/weights_{i}" for i in range(self.case["shards"])]
            if names[0] in self.tensors:
                return torch.cat([self.tensors[name] for name in names])
        raise KeyError(kinds)

    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = torch.zeros(*input_ids.shape, self.case["d"], dtype=torch.double)
        for row, (ids, mask) in enumerate(zip(input_ids, attention_mask, strict=True)):
            n = int(mask.sum())
            states[row, :n] = self._encode(ids[:n])
        return states

    def logits(
        self, input_ids: Tensor, attention_mask: Tensor, decoder_input_ids: Tensor
    ) -> Tensor:
        states = self.encode(input_ids, attention_mask)
        rows = zip(states, attention_mask, decoder_input_ids, strict=True)
        return torch.stack([self._decode(ids[1:], s[: int(m.sum())]) for s, m, ids in rows])

    def _embed(self, ids: Tensor, *kinds: str) -> Tensor:
        rows = self._matrix(*kinds)[ids] * math.sqrt(self.case["d"])
        return rows * (ids != PAD).unsqueeze(-1)

    def _encode(self, ids: Tensor) -> Tensor:
        x = self._embed(ids, "shared", "input_emb")
        if self.case["space"] is not None:
            x = x + self.tensors["target_space_embedding/kernel"][self.case["space"]]
        return self._run("encoder", x, None)

    def _decode(self, targets: Tensor, memory: Tensor) -> Tensor:
        embedded = self._embed(targets, "shared", "target_emb")
        # Shifted to the right by a vector of zeros.
        x = torch.cat((torch.zeros(1, self.case["d"]).double(), embedded))
        return self._run("decoder", x, memory) @ self._matrix("softmax", "shared").T

    def _run(self, side: str, x: Tensor, memory: Tensor | None) -> Tensor:
        half = self.case["d"] // 2
        for position in range(len(x)):
            for i in range(half):
                angle = position * math.exp(-i * math.log(10000) / (half - 1))
                x[position, i] += math.sin(angle)
                x[position, half + i] += math.cos(angle)
        for number in range(self.case[f"{side}_layers"]):
            layer = f"{side}/layer_{number}"
            name = f"{layer}/self_attention"
            x = self._sublayer(
                name, x, lambda y, name=name: self._attend(name, y, y, memory is not None)
            )
            if memory is not None:
                name = f"{layer}/encdec_attention"
                x = self._sublayer(
                    name, x, lambda y, name=name: self._attend(name, y, memory, False)
                )
            name = f"{layer}/ffn"
            x = self._sublayer(name, x, lambda y, name=name: self._feed_forward(name, y))
        return self._norm(side, x) if self.case["norm"] == "pre" else x

    def _sublayer(self, name: str, x: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
        if self.case["norm"] == "pre":
            return x + run(self._norm(name, x))
        return self._norm(name, x + run(x))

    def _norm(self, name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        name = f"{name}/layer_norm/layer_norm"
        return scaled * self.tensors[f"{name}_scale"] + self.tensors[f"{name}_bias"]

    def _feed_forward(self, name: str, x: Tensor) -> Tensor:
        for part in ("conv1", "conv2"):
            x = x @ self.tensors[f"{name}/{part}/kernel"] + self.tensors[f"{name}/{part}/bias"]
            x = x.clamp(min=0) if part == "conv1" else x
        return x

    def _attend(self, name: str, x: Tensor, memory: Tensor, is_causal: bool) -> Tensor:
        heads = self.case["heads"]
        q, k, v = (
            (states @ self.tensors[f"{name}/multihead_attention/{part}/kernel"])
            .unflatten(-1, (heads, -1))
            .transpose(0, 1)
            for part, states in (("q", x), ("k", memory), ("v", memory))
        )
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(1, 2)
        if is_causal:
            scores = scores - 1e9 * torch.ones(len(x), len(x)).triu(1)
        mixed = (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)
        return mixed @ self.tensors[f"{name}/multihead_attention/output_transform/kernel"]

    def next_scores(self, ids: Tensor) -> Callable[[list[int]], Tensor]:
        """Of a sentence: log-probabilities of what follows the tokens so far."""
        memory = self._encode(ids)

        def score(tokens: list[int]) -> Tensor:
            targets = torch.tensor(tokens, dtype=torch.long)
            return self._decode(targets, memory)[-1].log_softmax(-1)

        return score


def search(score: Callable[[list[int]], Tensor], beam: int, longest: int) -> list[int]:
    """The best of at most `longest` tokens by log-probability / ((5 + n) / 6)^0.6.

    A sentence is done when no hypothesis that goes on is better, were it to end now, than the
    worst of `beam` ended ones.
    """

    def penalty(length: int) -> float:
        return ((5 + length) / 6) ** 0.6

    alive: list[tuple[float, list[int]]] = [(0.0, [])]
    ended: list[tuple[float, list[int]]] = []
    for length in range(1, longest + 1):
        candidates = []
        for total, tokens in alive:
            candidates += [(total + p, [*tokens, i]) for i, p in enumerate(score(tokens).tolist())]
        candidates.sort(key=lambda item: -item[0])
        for total, tokens in candidates[:beam]:
            if tokens[-1] == EOS or length == longest:
                ended.append((total / penalty(length), tokens))
        ended = sorted(ended, key=lambda item: -item[0])[:beam]
        alive = [item for item in candidates[: 2 * beam] if item[1][-1] != EOS][:beam]
        if len(ended) == beam and alive[0][0] / penalty(length) <= ended[-1][0]:
            break
    return ended[0][1]


class NaiveSubwords:
    """Tensor2Tensor's `SubwordTextEncoder`, of a list of subwords."""

    def __init__(self, subwords: list[str]):
        self.subwords = subwords
        self.ids = {subword: number for number, subword in enumerate(subwords)}
        self.alphabet = {c for subword in subwords for c in subword} | set("\\_u;0123456789")

    def encode(self, text: str) -> list[int]:
        tokens: list[str] = []
        for character in text:
            if tokens and _is_word(tokens[-1][-1]) == _is_word(character):
                tokens[-1] += character
            else:
                tokens.append(character)
        kept = [t for i, t in enumerate(tokens) if t != " " or i in (0, len(tokens) - 1)]
        return [number for token in kept for number in self._cut(self._escape(token))]

    def _escape(self, token: str) -> str:
        token = token.replace("\\", "\\\\").replace("_", "\\u")
        return (
            "".join(c if c in self.alphabet and c != "\n" else f"\\{ord(c)};" for c in token) + "_"
        )

    def _cut(self, escaped: str) -> list[int]:
        found, start = [], 0
        while start < len(escaped):
            end = len(escaped)
            while escaped[start:end] not in self.ids:
                end -= 1
            found.append(self.ids[escaped[start:end]])
            start = end
        return found

    def decode(self, ids: list[int]) -> str:
        joined = "".join(self.subwords[number] for number in ids)
        tokens = [_unescape(token) for token in joined.split("_") if token]
        text = ""
        for i, token in enumerate(tokens):
            if i and _is_word(tokens[i - 1][0]) and _is_word(token[0]):
                text += " "
            text += token
        return text


def _is_word(character: str) -> bool:
    return unicodedata.category(character)[0] in "LN"


def _unescape(token: str) -> str:
    def plain(match: re.Match[str]) -> str:
        if match[0] in ("\\u", "\\\\"):
            return "_" if match[0] == "\\u" else "\\"
        return chr(int(match[1]))

    return re.sub(r"\\u|\\\\|\\([0-9]+);", plain, token)
