"""One sentence followed through the model in the order of the paper, with the actual numbers.

Every number is what the model's own modules took in or gave out while it ran once; what the page
computes from them (scores before the softmax, sums before a norm) is checked against what came
next.

Shapes: `S` source tokens, `T` target tokens, `d` = d_model, `V` target vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
import torch

from ..atomic_file import atomic_file
from .recording import observed, readable_tokens, start_token_id

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..modeling_vanilla_transformer import VanillaTransformerForConditionalGeneration

MAX_TOKENS = 40
"""More rows than that are no walk but a march."""

_COLUMNS = 8
"""Numbers of each vector that are shown."""


@dataclass(frozen=True)
class Matrix:
    """A table of numbers on the page.

    Attributes:
        name: What it is, in the paper's letters.
        shape: Of all of it; the table shows a part.
        rows: Labels.
        columns: Labels.
        values: `[rows, columns]`; NaN where nothing is, as behind a mask.
        digits: Shown after the point; numbers without any are not shaded.
    """

    name: str
    shape: tuple[int, ...]
    rows: list[str]
    columns: list[str]
    values: np.ndarray
    digits: int = 2


@dataclass(frozen=True)
class Step:
    """One station of the walk: heading, section of the paper, what happens, and the numbers."""

    title: str
    section: str
    text: str
    matrices: list[Matrix]


class _Recording:
    """Inputs and outputs of a model's modules by their names, and what the whole model gave."""

    def __init__(self) -> None:
        self.given: dict[str, torch.Tensor] = {}
        self.made: dict[str, torch.Tensor] = {}
        self.outputs: Any = None


def walk(
    model: VanillaTransformerForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    target: str | None = None,
) -> list[Step]:
    """Runs the model once on a sentence pair and says what happened, step by step.

    Args:
        model: One of this package's; it comes back as it was.
        tokenizer: Its own.
        source: The sentence.
        target: Its translation; default: the model's own greedy one.

    Raises:
        ValueError: No source text, or more than 40 tokens on a side.
    """
    if not source.strip():
        raise ValueError(f"source ({source!r}) must hold some text to follow")
    ids = tokenizer(source)["input_ids"]
    with observed(model), torch.no_grad():
        if target is None:
            encoded = torch.tensor([ids], device=model.device)
            sequence = model.generate(encoded, num_beams=1, max_new_tokens=MAX_TOKENS)[0].tolist()
        else:
            sequence = [start_token_id(model), *tokenizer(text_target=target)["input_ids"]]
        read, written = sequence[:-1], sequence[1:]
        for name, tokens in (("source", ids), ("target", read)):
            if len(tokens) > MAX_TOKENS:
                raise ValueError(
                    f"{name} has {len(tokens)} tokens and the walk shows at most {MAX_TOKENS}; "
                    "give a shorter sentence"
                )
        with _recorded(model) as recording:
            recording.outputs = model(
                input_ids=torch.tensor([ids], device=model.device),
                decoder_input_ids=torch.tensor([read], device=model.device),
                output_attentions=True,
                output_hidden_states=True,
                use_cache=False,
            )
    side = getattr(tokenizer, "target", tokenizer)
    names = {
        "source": readable_tokens(ids, tokenizer),
        "read": readable_tokens(read, side),
        "written": readable_tokens(written, side),
    }
    return list(_steps(model, recording, side, names, ids, read, written))


def write_walkthrough(
    model: VanillaTransformerForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    path: str | Path,
    *,
    target: str | None = None,
) -> Path:
    """Writes the walk as one self-contained page. Args and Raises: as `walk`."""
    steps = walk(model, tokenizer, source, target)
    template = Path(__file__).with_name("walkthrough.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.globals["shade"] = _shade
    page = environment.from_string(template).render(title=source.strip(), steps=steps)
    with atomic_file(Path(path)) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return Path(path)


def _shade(matrix: Matrix) -> list[list[tuple[str, str, float]]]:
    """Text, sign and share of the largest of each number."""
    largest = float(np.nanmax(np.abs(matrix.values))) or 1.0
    return [
        [
            ("", "none", 0.0)
            if math.isnan(value)
            else (
                f"{value:.{matrix.digits}f}",
                "minus" if value < 0 else "plus",
                round(abs(value) / largest, 3) if matrix.digits else 0.0,
            )
            for value in row
        ]
        for row in matrix.values.tolist()
    ]


@contextmanager
def _recorded(model: Any) -> Iterator[_Recording]:
    recording = _Recording()

    def keep(name: str) -> Any:
        def hook(module: Any, inputs: tuple[Any, ...], output: Any) -> None:
            if inputs and isinstance(inputs[0], torch.Tensor):
                recording.given[name] = inputs[0][0].float().cpu()
            if isinstance(output, torch.Tensor):
                recording.made[name] = output[0].float().cpu()

        return hook

    hooks = [module.register_forward_hook(keep(name)) for name, module in model.named_modules()]
    try:
        yield recording
    finally:
        for hook in hooks:
            hook.remove()


def _steps(
    model: Any,
    recording: _Recording,
    tokenizer: PreTrainedTokenizerBase,
    names: dict[str, list[str]],
    ids: list[int],
    read: list[int],
    written: list[int],
) -> Iterator[Step]:
    config = model.config
    yield Step(
        "Tokens",
        "5.1",
        "The sentence is cut into pieces of the vocabulary; each has a number. The end of the "
        "sentence is a token too. The decoder reads the translation shifted by one: at each "
        "position it is to write the next token.",
        [
            _matrix("source", torch.tensor([ids]).T, names["source"], ["id"]),
            _matrix(
                "target, as the decoder reads it", torch.tensor([read]).T, names["read"], ["id"]
            ),
        ],
    )
    yield from _embedding(model, recording, "encoder", names["source"])
    yield from _layer(model, recording, "encoder", names["source"], names["source"])
    yield _all_layers(recording.outputs.encoder_hidden_states, "encoder", names["source"])
    yield from _embedding(model, recording, "decoder", names["read"])
    yield from _layer(model, recording, "decoder", names["read"], names["source"])
    yield _all_layers(recording.outputs.decoder_hidden_states, "decoder", names["read"])

    logits = recording.outputs.logits[0].float().cpu()
    probabilities = logits.softmax(-1)
    best = probabilities.topk(min(5, probabilities.shape[1]))
    shown = [readable_tokens(row, tokenizer) for row in best.indices.tolist()]
    chosen = probabilities.gather(1, torch.tensor(written)[:, None])
    labels = [
        f"after {token}: {', '.join(row)}" for token, row in zip(names["read"], shown, strict=True)
    ]
    yield Step(
        "Output probabilities",
        "3.4",
        "A linear layer gives each token of the vocabulary a logit; softmax makes probabilities "
        f"of the {config.target_vocab_size:,} logits. "
        + ("The layer's matrix is that of the embeddings. " if config.tie_word_embeddings else "")
        + "Beside each position the five likeliest tokens.",
        [
            _matrix("logits", logits[:, :_COLUMNS], names["read"], full=tuple(logits.shape)),
            _matrix("the five greatest of softmax(logits)", best.values, labels, list("12345")),
            _matrix(
                "probability of the token written",
                chosen,
                [f"{a} → {b}" for a, b in zip(names["read"], names["written"], strict=True)],
                ["p"],
            ),
        ],
    )


def _embedding(model: Any, recording: _Recording, side: str, tokens: list[str]) -> Iterator[Step]:
    stack = f"model.{side}"
    embedded = recording.made.get(f"{stack}.embed_tokens")
    if embedded is None:
        embedded = recording.made["model.shared"]
    d = embedded.shape[-1]
    scaled = embedded * math.sqrt(d)
    total = recording.given[f"{stack}.dropout"]
    positions = total - scaled
    yield Step(
        f"{side.capitalize()}: embeddings and positions",
        "3.4, 3.5",
        f"Each token's row of the embedding matrix times √d_model = {math.sqrt(d):.2f}, plus the "
        "encoding of its position. Nothing else says where a token stands.",
        [
            _matrix("E √d_model", scaled, tokens),
            _matrix("positions", positions, tokens),
            _matrix("x, their sum", total, tokens),
        ],
    )


def _layer(
    model: Any, recording: _Recording, side: str, tokens: list[str], source: list[str]
) -> Iterator[Step]:
    """The first layer of a stack, sub-layer by sub-layer."""
    config, made = model.config, recording.made
    stack = getattr(model.model, side)
    name, layer = f"model.{side}.layers.0", stack.layers[0]
    states = recording.outputs[f"{side}_hidden_states"][0][0].float().cpu()
    kinds = [("self_attn", side, tokens)]
    if side == "decoder":
        kinds.append(("cross_attn", "cross", source))
    for attention, kind, keys in kinds:
        weights = recording.outputs[f"{kind}_attentions"][0][0, 0].float().cpu()
        yield from _attention(
            config, recording, side, f"{name}.{attention}", layer, weights, tokens, keys
        )
        output = made[f"{name}.{attention}.o_proj"]
        norm = f"{attention}_layer_norm"
        yield _residual(recording, side, name, norm, output, states, layer.is_pre_norm, tokens)
        states = _after(recording, name, attention, states, layer.is_pre_norm)
    inner = recording.given[f"{name}.fc2"]
    output = made[f"{name}.fc2"]
    active = (inner > 0).float().mean(dim=1, keepdim=True)
    yield Step(
        f"{side.capitalize()}, layer 1: feed-forward",
        "3.3",
        "At each position by itself: a linear layer to d_ff = "
        f"{inner.shape[1]:,} units, {config.activation}, and a linear layer back to d_model.",
        [
            _matrix("activations", inner, tokens),
            _matrix("share of units above 0", active, tokens, ["share"]),
            _matrix("output", output, tokens),
        ],
    )
    yield _residual(
        recording, side, name, "ffn_layer_norm", output, states, layer.is_pre_norm, tokens
    )


def _after(
    recording: _Recording, name: str, attention: str, states: torch.Tensor, is_pre_norm: bool
) -> torch.Tensor:
    """What leaves the residual connection of an attention."""
    if is_pre_norm:
        return states + recording.made[f"{name}.{attention}.o_proj"]
    return recording.made[f"{name}.{attention}_layer_norm"]


def _attention(
    config: Any,
    recording: _Recording,
    side: str,
    name: str,
    layer: Any,
    weights: torch.Tensor,
    tokens: list[str],
    keys: list[str],
) -> Iterator[Step]:
    """Scaled dot-product attention of the first head."""
    is_cross = name.endswith("cross_attn")
    q, k = (recording.made[f"{name}.{part}"][:, : config.d_k] for part in ("q_proj", "k_proj"))
    v = recording.made[f"{name}.v_proj"][:, : config.d_v]
    title = f"{side.capitalize()}, layer 1: " + (
        "attention to the encoder's output" if is_cross else "self-attention"
    )
    where = "the encoder's output" if is_cross else "the same states"
    yield Step(
        f"{title}: queries, keys, values",
        "3.2.2",
        f"Three linear layers. Queries are of the {side}'s states, keys and values of {where}. "
        f"Each of the {config.num_heads} heads has its own d_k = {config.d_k} numbers of them. "
        "Head 1:",
        [
            _matrix("Q = x W^Q", q, tokens),
            _matrix("K = x W^K", k, keys),
            _matrix("V = x W^V", v, keys),
        ],
    )
    products = q @ k.T
    scaled = products / math.sqrt(config.d_k)
    matrices = [
        _matrix("Q Kᵀ", products, tokens, keys),
        _matrix("Q Kᵀ / √d_k", scaled, tokens, keys),
    ]
    text = (
        "Every query times every key, divided by "
        f"√d_k = {math.sqrt(config.d_k):.2f}: without it the softmax of long vectors would give "
        "all to one."
    )
    if side == "decoder" and not is_cross:
        hidden = torch.ones_like(scaled, dtype=torch.bool).triu(1)
        scaled = scaled.masked_fill(hidden, -torch.inf)
        shown = scaled.masked_fill(hidden, torch.nan)
        matrices.append(_matrix("with the mask", shown, tokens, keys))
        text += " What comes later is masked: a token is written before the next is known."
    expected = scaled.softmax(-1)
    assert torch.allclose(expected, weights, atol=1e-4), "the scores are not those of the weights"
    attended = weights @ v
    given = recording.given[f"{name}.o_proj"][:, : config.d_v]
    assert torch.allclose(attended, given, atol=1e-3), "the values are not those of the output"
    matrices += [
        _matrix("softmax, each row sums to 1", weights, tokens, keys),
        _matrix("times V: what head 1 found", attended, tokens),
    ]
    yield Step(f"{title}: who looks at whom", "3.2.1", text, matrices)
    yield Step(
        f"{title}: all heads together",
        "3.2.2",
        f"The {config.num_heads} heads side by side, and a linear layer over them.",
        [
            _matrix("Concat(head_1, ..., head_h)", recording.given[f"{name}.o_proj"], tokens),
            _matrix("times W^O", recording.made[f"{name}.o_proj"], tokens),
        ],
    )


def _residual(
    recording: _Recording,
    side: str,
    name: str,
    norm: str,
    output: torch.Tensor,
    states: torch.Tensor,
    is_pre_norm: bool,
    tokens: list[str],
) -> Step:
    total = states + output
    title = f"{side.capitalize()}, layer 1: add and norm"
    made = recording.made[f"{name}.{norm}"]
    if is_pre_norm:
        return Step(
            title,
            "3.1",
            "This model is of the later, pre-norm kind: the states were normalised before the "
            "sub-layer, and its output is added to them as they were.",
            [
                _matrix("norm(x), what went in", made, tokens),
                _matrix("x + Sublayer", total, tokens),
            ],
        )
    given = recording.given[f"{name}.{norm}"]
    assert torch.allclose(given, total, atol=1e-3), "the sum is not what the norm was given"
    return Step(
        title,
        "3.1",
        "The sub-layer's output is added to what went into it, and the sum of each position is "
        "brought to mean 0 and variance 1, then scaled and shifted as learned.",
        [
            _matrix("x + Sublayer(x)", total, tokens),
            _matrix("LayerNorm(x + Sublayer(x))", made, tokens),
        ],
    )


def _all_layers(states: Any, side: str, tokens: list[str]) -> Step:
    stacked = torch.stack([layer[0].float().cpu() for layer in states])
    # How much of a token's state is left as it came in.
    similar = torch.cosine_similarity(stacked, stacked[:1], dim=-1)
    count = len(states) - 1
    labels = ["embedded", *(f"layer {i}" for i in range(1, count + 1))]
    return Step(
        f"{side.capitalize()}: all {count} layers",
        "3.1",
        "The other layers do the same with weights of their own. What comes out of the last is "
        + ("what the decoder attends to." if side == "encoder" else "what words are chosen by."),
        [
            _matrix("output of the last layer", stacked[-1], tokens),
            _matrix("cosine of a token's state with its embedding", similar.T, tokens, labels),
        ],
    )


def _matrix(
    name: str,
    values: torch.Tensor,
    rows: list[str],
    columns: list[str] | None = None,
    full: tuple[int, ...] | None = None,
) -> Matrix:
    """A matrix whose columns have names, or the first of many that have numbers."""
    shape = tuple(values.shape) if full is None else full
    if columns is None:
        values = values[:, :_COLUMNS]
        columns = [str(i) for i in range(1, values.shape[1] + 1)]
    array: np.ndarray = values.double().numpy()
    return Matrix(name, shape, rows, columns, array, 2 if values.is_floating_point() else 0)
