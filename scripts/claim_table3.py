"""The paper's Table 3 scaled down: heads, d_k, depth, width, dropout, smoothing, positions.

    python scripts/claim_table3.py

Section 6.2 varies one thing at a time in the base model. Here every row is a row of that table with
its widths divided by eight and its depth by three, trained on the embedded corpus.
"""

import dataclasses
import functools
import math
import time
from typing import Any

import torch
from claim_runs import (
    Corpus,
    batches,
    greedy_bleu,
    load_corpus,
    parameters_of,
    train,
    validation_loss,
)
from claims import Finding, Table, claim_parser, interval, publish, with_interval
from matplotlib.figure import Figure

from vanilla_transformer import (
    VanillaTransformerConfig,
    VanillaTransformerForConditionalGeneration,
)
from vanilla_transformer.training.optimization import learning_rate

# Of the paper's numbers.
WIDTHS, DEPTHS = 8, 3
# Positions of a learned table: more than any sentence here has tokens.
MOST_POSITIONS = 128
# Rows of the paper's Table 3: perplexity and BLEU on newstest2013. The row of depth 4 would be that
# of depth 2 once both are divided by three; "big" was trained three times as long.
PAPER = {
    "base": (4.92, 25.8),
    "A-h1": (5.29, 24.9),
    "A-h4": (5.00, 25.5),
    "A-h16": (4.91, 25.8),
    "A-h32": (5.01, 25.4),
    "B-dk16": (5.16, 25.1),
    "B-dk32": (5.01, 25.4),
    "C-N2": (6.11, 23.7),
    "C-N8": (4.88, 25.5),
    "C-d256": (5.75, 24.5),
    "C-d1024": (4.66, 26.0),
    "C-ff1024": (5.12, 25.4),
    "C-ff4096": (4.75, 26.2),
    "D-drop0.0": (5.77, 24.6),
    "D-drop0.2": (4.95, 25.5),
    "D-ls0.0": (4.67, 25.3),
    "D-ls0.2": (5.47, 25.7),
    "E": (4.92, 25.7),
}
# As the tables say it; the base model's fields stand in its own row.
FIELDS = {
    "num_heads": "h",
    "d_k": "d_k",
    "num_encoder_layers": "N",
    "d_model": "d",
    "d_ff": "d_ff",
    "dropout": "dropout",
    "label_smoothing": "smoothing",
    "position_encoding": "positions",
}


def scaled(row: str, vocab_size: int, **others: Any) -> VanillaTransformerConfig:
    """The configuration of a row, divided."""
    config = VanillaTransformerConfig.from_paper(row)
    assert config.d_k is not None
    assert config.d_v is not None
    depth = max(1, round(config.num_encoder_layers / DEPTHS))
    return VanillaTransformerConfig(
        vocab_size=vocab_size,
        d_model=config.d_model // WIDTHS,
        d_ff=config.d_ff // WIDTHS,
        num_heads=config.num_heads,
        d_k=config.d_k // WIDTHS,
        d_v=config.d_v // WIDTHS,
        num_encoder_layers=depth,
        num_decoder_layers=depth,
        dropout=config.dropout,
        label_smoothing=config.label_smoothing,
        position_encoding=config.position_encoding,
        max_position_embeddings=MOST_POSITIONS if config.position_encoding == "learned" else None,
        **others,
    )


def difference(config: VanillaTransformerConfig, base: VanillaTransformerConfig) -> str:
    """What a row changes, in the paper's letters; all of it for the base model itself."""
    changed = [
        f"{letter} = {getattr(config, field)}"
        for field, letter in FIELDS.items()
        if config is base or getattr(config, field) != getattr(base, field)
    ]
    return ", ".join(changed)


@dataclasses.dataclass(frozen=True)
class Budget:
    """Of each run: updates, tokens of one, and where the base model's learning rate peaks."""

    updates: int = 600
    tokens: int = 1024
    peak: float = 2e-3


def measure(corpus: Corpus, row: str, budget: Budget, seed: int, device: str) -> dict[str, Any]:
    """Trains a row with a seed, on the same batches as every other row with it."""
    tokenizer = corpus.tokenizer
    special = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "decoder_start_token_id": tokenizer.bos_token_id,
    }
    config = scaled(row, len(tokenizer), **special)
    base = scaled("base", len(tokenizer), **special)
    torch.manual_seed(seed)
    model = VanillaTransformerForConditionalGeneration(config).to(device)
    warmup = max(1, budget.updates // 6)
    # As the paper has it, the rate falls with the root of the width (5.3).
    factor = budget.peak * math.sqrt(base.d_model * warmup)
    rate = functools.partial(learning_rate, d_model=config.d_model, warmup=warmup, factor=factor)
    data = batches(corpus, max_tokens=budget.tokens, seed=seed, device=device)
    run = train(model, data, rate, updates=budget.updates)
    loss = validation_loss(model, corpus, device)
    return {
        "row": row,
        "seed": seed,
        "changed": difference(config, base) if row != "base" else difference(base, base),
        "parameters": parameters_of(model),
        "seconds": run.seconds,
        "loss": loss,
        "perplexity": math.exp(min(loss, 700)),
        "bleu": greedy_bleu(model, corpus, device=device),
    }


def main() -> None:
    """Measures."""
    parser = claim_parser(__doc__.split("\n")[0])
    add = parser.add_argument
    add("--updates", type=int, default=Budget.updates, help=f"of each run [{Budget.updates}]")
    add("--rows", nargs="+", choices=PAPER, metavar="ROW", default=list(PAPER), help="[all]")
    add(
        "--minutes",
        type=float,
        default=math.inf,
        help="no further seed is begun that would not be done by then [no limit]",
    )
    options = parser.parse_args()
    begin = time.perf_counter()
    budget = Budget(3, 256) if options.quick else Budget(options.updates)
    corpus = load_corpus(*((400, 300, 4) if options.quick else ()))
    # The base model is what the others are compared with.
    rows = list(dict.fromkeys(["base", *options.rows]))
    seeds = 1 if options.quick else options.seeds
    found: list[dict[str, Any]] = []
    for seed in range(1, seeds + 1):
        passed = (time.perf_counter() - begin) / 60
        if seed > 1 and passed * seed / (seed - 1) > options.minutes:
            print(f"no time for seed {seed}", flush=True)
            break
        for row in rows:
            found.append(measure(corpus, row, budget, seed, options.device))
            print(found[-1], flush=True)
        # After each seed, so that a run that is stopped leaves what it has.
        raw = {"budget": dataclasses.asdict(budget), "rows": rows, "runs": found}
        publish(finding(raw), options.output, time.perf_counter() - begin)


def against_base(raw: dict[str, Any], row: str, score: str) -> list[float]:
    """A row's score less the base model's of the same seed, seed by seed."""
    of = {(run["row"], run["seed"]): run[score] for run in raw["runs"]}
    return [of[row, seed] - of["base", seed] for name, seed in of if name == row]


def signed(values: list[float], digits: int) -> str:
    """A mean difference with its interval."""
    text = with_interval(values, digits)
    return text if text.startswith("-") else f"+{text}"


def finding(raw: dict[str, Any]) -> Finding:
    """The page, from the numbers alone."""
    rows = raw["rows"]
    seeds = len({run["seed"] for run in raw["runs"]})
    by_row = {row: [run for run in raw["runs"] if run["row"] == row] for row in rows}
    others = [row for row in rows if row != "base"]

    figure = Figure(figsize=(11, 5.5))
    left, right = figure.subplots(1, 2, sharey=True)
    places = range(len(others))
    for axes, score, column, name in (
        (left, "perplexity", 0, "perplexity"),
        (right, "bleu", 1, "BLEU"),
    ):
        spread = [interval(against_base(raw, row, score)) for row in others]
        half = [0.0 if math.isinf(one) else one for _, one in spread]
        means = [mean for mean, _ in spread]
        axes.errorbar(means, places, xerr=half, fmt="o", capsize=3, label="here, 95% interval")
        paper = [PAPER[row][column] - PAPER["base"][column] for row in others]
        axes.plot(paper, places, "d", color="tab:orange", label="the paper, newstest2013")
        axes.axvline(0, color="black", lw=0.8)
        axes.set(xlabel=f"{name} less the base model's")
        axes.grid(alpha=0.3)
    left.set_yticks(places, [f"{row}: {by_row[row][0]['changed']}" for row in others], fontsize=8)
    left.invert_yaxis()
    right.legend(fontsize=8)
    figure.tight_layout()

    def sure(score: str, sign: int) -> list[str]:
        """Rows whose interval lies on one side of the base model."""
        kept = []
        for row in others:
            mean, half = interval(against_base(raw, row, score))
            if sign * mean > half:
                kept.append(row)
        return kept

    def listed(names: list[str]) -> str:
        return ", ".join(names) or "none"

    published = {row: PAPER[row][0] - PAPER["base"][0] for row in others}
    agreeing = [
        row
        for row in others
        if published[row] * sum(against_base(raw, row, "perplexity")) > 0 or not published[row]
    ]
    tables = [
        Table(
            f"Perplexity of validation tokens, BLEU of greedy test translations; seeds: {seeds}",
            ["", "changed", "parameters", "perplexity", "BLEU", "Δ BLEU", "Δ BLEU in the paper"],
            [
                [
                    row,
                    by_row[row][0]["changed"],
                    f"{by_row[row][0]['parameters']:,}",
                    with_interval([run["perplexity"] for run in by_row[row]], 2),
                    with_interval([run["bleu"] for run in by_row[row]]),
                    "" if row == "base" else signed(against_base(raw, row, "bleu"), 1),
                    "" if row == "base" else f"{PAPER[row][1] - PAPER['base'][1]:+.1f}",
                ]
                for row in rows
            ],
        )
    ]
    reading = [
        "By intervals that leave the base model out, perplexity is lower with "
        f"{listed(sure('perplexity', -1))}, higher with {listed(sure('perplexity', 1))}; BLEU is "
        f"higher with {listed(sure('bleu', 1))}, lower with {listed(sure('bleu', -1))}."
    ]
    if others:
        reading.append(
            f"In {len(agreeing)} of {len(others)} rows perplexity moves the way it does in the "
            f"paper; not in {listed([row for row in others if row not in agreeing])}."
        )
    budget = raw["budget"]
    base = by_row["base"][0]
    return Finding(
        name="table3",
        title="The paper's Table 3, scaled down",
        claim="One head is worse than several, and too many are worse again; a smaller d_k hurts; "
        "bigger models are better; dropout helps much; learned positions are as good as sinusoids "
        "(6.2, Table 3).",
        method=f"Each row of the table with widths divided by {WIDTHS} and depths by {DEPTHS} "
        f"(base: {base['changed']}; {base['parameters']:,} parameters), on the embedded corpus: "
        f"{budget['updates']} updates of {budget['tokens']} tokens a side, the paper's Adam and "
        f"schedule with a peak of {budget['peak']:g} for the base model; {seeds} seeds, mean ± "
        "95% interval. Sentences of validation and test hold combinations of words that training "
        "has not. Differences from the base model are of runs with the same seed and batches.",
        reading=reading,
        tables=tables,
        figure=figure,
        limits="Short runs of small models, none of which sees a pair often: what prevents "
        "overfitting, such as dropout and smoothing, has nothing to prevent. Of so many rows one "
        "or so lies outside by chance. The paper's figures are of one run a row, English to "
        "German, newstest2013, and stand here to compare directions, not sizes.",
        raw=raw,
    )


if __name__ == "__main__":
    main()
