"""fairseq's Transformer from its documented equations, in a page, sharing no code with the package.

It reads the tensors under fairseq's own present names, one sentence at a time and without padding,
caches or masks other than that of the future.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

BOS, PAD, EOS, UNK = range(4)


def tensor_shapes(args: Mapping[str, Any], sources: int, targets: int) -> dict[str, tuple]:
    """Names and shapes that fairseq 0.12 saves for these options."""
    d = args["encoder_embed_dim"]
    shapes: dict[str, tuple] = {}

    def linear(name: str, out: int, into: int) -> None:
        shapes.update({f"{name}.weight": (out, into), f"{name}.bias": (out,)})

    def norm(name: str) -> None:
        shapes.update({f"{name}.weight": (d,), f"{name}.bias": (d,)})

    for side, rows in (("encoder", sources), ("decoder", targets)):
        shapes[f"{side}.version"] = (1,)
        shapes[f"{side}.embed_tokens.weight"] = (rows, d)
        shapes[f"{side}.embed_positions._float_tensor"] = (1,)
        for i in range(args[f"{side}_layers"]):
            layer = f"{side}.layers.{i}"
            attentions = ["self_attn"] + ["encoder_attn"] * (side == "decoder")
            for attention in attentions:
                for part in ("k", "v", "q", "out"):
                    linear(f"{layer}.{attention}.{part}_proj", d, d)
                norm(f"{layer}.{attention}_layer_norm")
            linear(f"{layer}.fc1", args[f"{side}_ffn_embed_dim"], d)
            linear(f"{layer}.fc2", d, args[f"{side}_ffn_embed_dim"])
            norm(f"{layer}.final_layer_norm")
        if args["encoder_normalize_before"]:
            norm(f"{side}.layer_norm")
    shapes["decoder.output_projection.weight"] = (targets, d)
    return shapes


class NaiveTransformer:
    """Encoder states, logits and searches of a state dict of fairseq's."""

    name = "the documented equations"

    def __init__(self, tensors: Mapping[str, Tensor], args: Mapping[str, Any]):
        self.tensors = {name: tensor.double() for name, tensor in tensors.items()}
        self.args = args
        self.d = args["encoder_embed_dim"]

    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = torch.zeros(*input_ids.shape, self.d, dtype=torch.double)
        for row, (ids, mask) in enumerate(zip(input_ids, attention_mask, strict=True)):
            n = int(mask.sum())
            states[row, :n] = self.encode_one(ids[:n])
        return states

    def logits(
        self, input_ids: Tensor, attention_mask: Tensor, decoder_input_ids: Tensor
    ) -> Tensor:
        return torch.stack(
            [
                self.decode_one(decoder, self.encode_one(ids[: int(mask.sum())]))
                for ids, mask, decoder in zip(
                    input_ids, attention_mask, decoder_input_ids, strict=True
                )
            ]
        )

    def encode_one(self, ids: Tensor) -> Tensor:
        return self._run("encoder", ids, None)

    def decode_one(self, ids: Tensor, memory: Tensor) -> Tensor:
        x = self._run("decoder", ids, memory)
        return x @ self.tensors["decoder.output_projection.weight"].T

    def _run(self, side: str, ids: Tensor, memory: Tensor | None) -> Tensor:
        x = math.sqrt(self.d) * self.tensors[f"{side}.embed_tokens.weight"][ids]
        # Positions count from 2: fairseq keeps the pad's own number and those below it free.
        x = x + torch.stack([self._sinusoid(PAD + 1 + p) for p in range(len(ids))])
        is_pre = self.args["encoder_normalize_before"]
        for i in range(self.args[f"{side}_layers"]):
            layer = f"{side}.layers.{i}"
            sublayers = [("self_attn_layer_norm", "self_attn")]
            if memory is not None:
                sublayers.append(("encoder_attn_layer_norm", "encoder_attn"))
            sublayers.append(("final_layer_norm", "ffn"))
            for norm, kind in sublayers:
                y = self._norm(f"{layer}.{norm}", x) if is_pre else x
                if kind == "ffn":
                    y = self._linear(
                        f"{layer}.fc2", self._activate(self._linear(f"{layer}.fc1", y))
                    )
                elif kind == "self_attn":
                    y = self._attend(f"{layer}.self_attn", y, y, memory is not None)
                else:
                    y = self._attend(f"{layer}.encoder_attn", y, memory, False)
                x = x + y
                x = x if is_pre else self._norm(f"{layer}.{norm}", x)
        return self._norm(f"{side}.layer_norm", x) if is_pre else x

    def _sinusoid(self, position: int) -> Tensor:
        half = self.d // 2
        angles = [position * math.exp(-i * math.log(10000) / (half - 1)) for i in range(half)]
        values = [*map(math.sin, angles), *map(math.cos, angles)]
        return torch.tensor(values, dtype=torch.double)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.tensors[f"{name}.weight"].T + self.tensors[f"{name}.bias"]

    def _activate(self, x: Tensor) -> Tensor:
        if self.args["activation_fn"] == "gelu":
            return x * (1 + torch.erf(x / math.sqrt(2))) / 2
        return x.clamp(min=0)

    def _norm(self, name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * self.tensors[f"{name}.weight"] + self.tensors[f"{name}.bias"]

    def _attend(self, name: str, x: Tensor, memory: Any, is_causal: bool) -> Tensor:
        heads = self.args["encoder_attention_heads"]
        q, k, v = (
            self._linear(f"{name}.{part}_proj", states).unflatten(-1, (heads, -1)).transpose(0, 1)
            for part, states in (("q", x), ("k", memory), ("v", memory))
        )
        scores = q @ k.transpose(1, 2) / math.sqrt(self.d // heads)
        if is_causal:
            future = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
            scores = scores.masked_fill(future, -math.inf)
        mixed = (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)
        return self._linear(f"{name}.out_proj", mixed)

    def search(self, ids: Tensor, beam: int, longest: int) -> list[int]:
        """What fairseq's `SequenceGenerator` chooses: at most `longest` tokens and `</s>`."""
        memory = self.encode_one(ids)
        alive: list[tuple[float, list[int]]] = [(0.0, [])]
        ended: list[tuple[float, list[int]]] = []
        for step in range(longest + 1):
            candidates = []
            for score, tokens in alive:
                logits = self.decode_one(torch.tensor([EOS, *tokens]), memory)[-1]
                log_p = logits.log_softmax(-1)
                log_p[PAD] = -math.inf
                if step == 0:
                    log_p[EOS] = -math.inf
                if step == longest:
                    log_p[:EOS] = log_p[EOS + 1 :] = -math.inf
                candidates += [(score + p, [*tokens, i]) for i, p in enumerate(log_p.tolist())]
            candidates.sort(key=lambda item: -item[0])
            for score, tokens in candidates[:beam]:
                if tokens[-1] == EOS and score > -math.inf and len(ended) < beam:
                    ended.append((score / len(tokens), tokens))
            if len(ended) == beam:
                break
            alive = [item for item in candidates[: 2 * beam] if item[1][-1] != EOS][:beam]
        return max(ended, key=lambda item: item[0])[1]
