"""What length costs: time and memory of attention, eager and fused, and of the feed-forward part.

    python scripts/claim_length.py

Section 4 and Table 1 of the paper: a layer of self-attention takes O(n² · d) operations, and joins
any two positions in one step. How much memory it takes depends on how it is computed.
"""

import functools
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from benchmarking import measure, peak_memory
from claims import Finding, Table, claim_parser, publish
from matplotlib.figure import Figure

from vanilla_transformer import VanillaTransformerConfig, VanillaTransformerEncoderModel

KINDS = ("eager", "sdpa")
NAMES = {"eager": "attention, eager", "sdpa": "attention, fused", "feed_forward": "linear layers"}
HEADS = 8


def attention(length: int, d_model: int, kind: str) -> Callable[[], object]:
    """Forward and backward of softmax(QKᵀ/√d_k)V alone: no projections, one sentence.

    Args:
        length: n.
        d_model: Of all heads together.
        kind: `"eager"` by products and softmax, `"sdpa"` by torch's fused kernel.
    """
    config = VanillaTransformerConfig(
        vocab_size=8,
        d_model=d_model,
        d_ff=8,
        num_heads=HEADS,
        num_encoder_layers=1,
        num_decoder_layers=1,
        dropout=0.0,
        attn_implementation=kind,
    )
    model = VanillaTransformerEncoderModel(config).train()
    layer = model.encoder.layers[0]
    module = layer.self_attn
    # The products around it belong to the linear layers.
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        setattr(module, name, torch.nn.Identity())
    states = torch.randn(1, length, d_model, requires_grad=True)

    def run() -> None:
        states.grad = None
        module(states)[0].sum().backward()

    return run


def feed_forward(length: int, d_model: int) -> Callable[[], object]:
    """Forward and backward of the feed-forward part and of the four projections, at d_ff = 4d."""
    torch.manual_seed(0)
    layers = torch.nn.ModuleList(torch.nn.Linear(d_model, d_model) for _ in range(4))
    wide, narrow = torch.nn.Linear(d_model, 4 * d_model), torch.nn.Linear(4 * d_model, d_model)
    states = torch.randn(length, d_model, requires_grad=True)

    def run() -> None:
        states.grad = None
        total = narrow(wide(states).relu()).sum() + sum(layer(states).sum() for layer in layers)
        total.backward()

    return run


def slope(lengths: list[int], values: list[float]) -> float:
    """Exponent of growth over the longer half of the lengths: 1 linear, 2 quadratic."""
    half = len(lengths) // 2
    x = torch.tensor(lengths[half:]).double().log()
    y = torch.tensor(values[half:]).double().log()
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / (x * x).sum())


def crossing(lengths: list[int], rising: list[float], other: list[float]) -> float | None:
    """Length from which on `rising` stays above `other`, interpolated by logarithms, if any."""
    gaps = [math.log(a / b) for a, b in zip(rising, other, strict=True)]
    for i in range(len(gaps) - 1, 0, -1):
        if gaps[i] > 0 >= gaps[i - 1]:
            share = -gaps[i - 1] / (gaps[i] - gaps[i - 1])
            return math.exp((1 - share) * math.log(lengths[i - 1]) + share * math.log(lengths[i]))
    return float(lengths[0]) if gaps[-1] > 0 else None


def main() -> None:
    """Measures."""
    parser = claim_parser(__doc__.split("\n")[0])
    parser.add_argument("--d-model", type=int, default=512)
    parser.add_argument("--longest", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    d_model = 32 if options.quick else options.d_model
    longest = min(options.longest, 256) if options.quick else options.longest
    lengths = [2**i for i in range(6, longest.bit_length())]
    begin = time.perf_counter()

    rows = []
    for length in lengths:
        contenders = {kind: attention(length, d_model, kind) for kind in KINDS}
        contenders["feed_forward"] = feed_forward(length, d_model)
        timings = measure(contenders, warmup=1, rounds=1 if options.quick else options.rounds)
        row = {"length": length, "seconds": {name: one.median for name, one in timings.items()}}
        row["bytes"] = {
            kind: peak_memory(functools.partial(attention, length, d_model, kind)).added
            for kind in KINDS
        }
        rows.append(row)
        print(row, flush=True)

    raw = {"d_model": d_model, "heads": HEADS, "rows": rows}
    publish(finding(raw), options.output, time.perf_counter() - begin)


def finding(raw: dict[str, Any]) -> Finding:
    """The page, from the numbers alone."""
    rows, d_model = raw["rows"], raw["d_model"]
    lengths = [row["length"] for row in rows]
    seconds = {name: [row["seconds"][name] for row in rows] for name in NAMES}
    memory = {kind: [row["bytes"][kind] for row in rows] for kind in KINDS}
    reading = [
        f"Over the longer half of the lengths time grows with n to the power of "
        f"{slope(lengths, seconds['eager']):.2f} (eager) and {slope(lengths, seconds['sdpa']):.2f} "
        f"(fused), of the linear layers {slope(lengths, seconds['feed_forward']):.2f}; memory "
        f"{slope(lengths, memory['eager']):.2f} (eager) and {slope(lengths, memory['sdpa']):.2f} "
        f"(fused).",
        f"At {lengths[-1]:,} positions the fused kernel takes "
        f"{seconds['eager'][-1] / seconds['sdpa'][-1]:.1f} times less time and "
        f"{memory['eager'][-1] / memory['sdpa'][-1]:.0f} times less memory.",
    ]
    for kind in KINDS:
        at = crossing(lengths, seconds[kind], seconds["feed_forward"])
        reading.append(
            f"{NAMES[kind].capitalize()}, costs more than all linear layers of its layer from "
            f"{at:,.0f} positions on."
            if at
            else f"{NAMES[kind].capitalize()}, costs less than the linear layers at all lengths."
        )
    figure = Figure(figsize=(10, 4))
    left, right = figure.subplots(1, 2)
    for name, values in seconds.items():
        left.loglog(lengths, values, marker="o", label=NAMES[name])
    for kind, values in memory.items():
        right.loglog(lengths, [value / 2**20 for value in values], marker="o", label=NAMES[kind])
    left.set(xlabel="positions", ylabel="seconds, forward and backward")
    right.set(xlabel="positions", ylabel="peak memory (MiB)")
    for axes in (left, right):
        axes.legend()
        axes.grid(alpha=0.3)
    table = Table(
        f"One sentence, d_model {d_model}, {raw['heads']} heads, forward and backward, medians",
        ["positions", *(f"{name} (ms)" for name in NAMES.values()), "eager (MiB)", "fused (MiB)"],
        [
            [
                f"{row['length']:,}",
                *(f"{1000 * row['seconds'][name]:,.1f}" for name in NAMES),
                *(f"{row['bytes'][kind] / 2**20:,.1f}" for kind in KINDS),
            ]
            for row in rows
        ],
    )
    return Finding(
        name="length",
        title="What length costs",
        claim="Self-attention takes O(n²·d) operations a layer, a recurrent layer O(n·d²): it "
        "is the cheaper one while n is smaller than d (section 4, Table 1).",
        method=f"softmax(QKᵀ/√d_k)V of one sentence, forward and backward, float32, d_model "
        f"{d_model}, {raw['heads']} heads; beside it all linear layers of the same layer (four "
        "projections, feed-forward part of four times the width). Time: contenders in turns, "
        "medians. Memory: what a call adds to the resident set, in a process of its own.",
        reading=reading,
        tables=[table],
        figure=figure,
        limits="One sentence, one machine; a processor's kernels, not a GPU's. The resident "
        "set holds what the allocator keeps besides what is in use, below some MiB mostly.",
        raw=raw,
    )


if __name__ == "__main__":
    main()
