"""Attention against recurrence and convolution: equal parameters, equal data, equal time.

    python scripts/claim_recurrence.py

Section 4 and Table 1 of the paper. The recurrent translator is torch's LSTM with global attention
(Luong et al. 2015), the convolutional one has gated convolutions and attention in each layer of
its decoder (Gehring et al. 2017, ConvS2S).
"""

import dataclasses
import functools
import json
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from benchmarking import Load, measure
from claim_runs import (
    Batch,
    Corpus,
    batches,
    greedy_bleu,
    load_corpus,
    parameters_of,
    train,
    validation_loss,
)
from claims import Finding, Table, claim_parser, publish, with_interval
from matplotlib.figure import Figure
from torch import nn
from torch.nn import functional as F
from transformers.modeling_outputs import Seq2SeqLMOutput

from vanilla_transformer import (
    VanillaTransformerConfig,
    VanillaTransformerForConditionalGeneration,
)
from vanilla_transformer.training.optimization import learning_rate

PAD, START, END, QUERY = 0, 1, 2, 3
# Symbols of the two puzzles, after the four above.
SYMBOLS = 32
# Of a batch of either, on one side.
PUZZLE_TOKENS = 1024
SMOOTHING = 0.1
# Of the convolutional peer; its parameters count.
MOST_POSITIONS = 640


# ------------------------------------------------------------------------------------------ peers


class Peer(nn.Module):
    """What both peers share: one matrix for all embeddings, labels shifted right, the loss."""

    def __init__(self, vocab_size: int, width: int, start: int, smoothing: float):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width, padding_idx=PAD)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        self.start, self.smoothing = start, smoothing

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor
    ) -> Seq2SeqLMOutput:
        """Logits `[B, T, V]` for labels `[B, T]`, of which -100 is none, and their loss."""
        shifted = F.pad(labels, (1, 0), value=self.start)[:, :-1].clamp_min(PAD)
        states = self.states(input_ids, attention_mask.bool(), shifted)
        logits = states @ self.embedding.weight.T
        smoothing = self.smoothing if self.training else 0.0
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=smoothing)
        return Seq2SeqLMOutput(loss=loss, logits=logits)

    def states(
        self, source: torch.Tensor, mask: torch.Tensor, target: torch.Tensor
    ) -> torch.Tensor:
        """Source `[B, S]` and its mask, target read `[B, T]`; gives `[B, T, width]`."""
        raise NotImplementedError


def attend(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """One head: queries `[B, T, d]` over `[B, S, d]`, masked `[B, S]`."""
    # The peers' papers do not scale.
    return F.scaled_dot_product_attention(query, keys, values, mask[:, None], scale=1.0)


class RecurrentTranslator(Peer):
    """A bidirectional LSTM reads, another one writes and looks back after each step."""

    def __init__(
        self, vocab_size: int, *, width: int, layers: int, dropout: float, start: int = START,
        smoothing: float = SMOOTHING,
    ):  # fmt: skip
        super().__init__(vocab_size, width, start, smoothing)
        inner = dropout if layers > 1 else 0.0
        self.encoder = nn.LSTM(
            width, width // 2, layers, batch_first=True, bidirectional=True, dropout=inner
        )
        self.decoder = nn.LSTM(width, width, layers, batch_first=True, dropout=inner)
        self.query = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(dropout)

    def states(
        self, source: torch.Tensor, mask: torch.Tensor, target: torch.Tensor
    ) -> torch.Tensor:
        """See `Peer`."""
        packed = nn.utils.rnn.pack_padded_sequence(
            self.dropout(self.embedding(source)),
            mask.sum(1).cpu(),
            batch_first=True,
            enforce_sorted=False,
        )
        encoded, (hidden, cell) = self.encoder(packed)
        memory, _ = nn.utils.rnn.pad_packed_sequence(
            encoded, batch_first=True, total_length=source.shape[1]
        )

        def joined(state: torch.Tensor) -> torch.Tensor:
            # Both directions of a layer side by side start the decoder's layer.
            return torch.cat((state[::2], state[1::2]), dim=-1)

        read = self.dropout(self.embedding(target))
        written, _ = self.decoder(read, (joined(hidden), joined(cell)))
        context = attend(self.query(written), memory, memory, mask)
        return self.dropout(torch.tanh(self.output(torch.cat((written, context), dim=-1))))


class GatedConvolution(nn.Module):
    """Convolution of width k to twice the channels, of which half is the gate of the other."""

    def __init__(self, width: int, kernel: int, *, causal: bool, dropout: float):
        super().__init__()
        self.convolution = nn.Conv1d(width, 2 * width, kernel)
        before = kernel - 1 if causal else kernel // 2
        self.padding = (before, kernel - 1 - before)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, L, width]` to the same."""
        moved = F.pad(self.dropout(x).transpose(1, 2), self.padding)
        return F.glu(self.convolution(moved), dim=1).transpose(1, 2)


class ConvolutionalTranslator(Peer):
    """Gated convolutions read and write; each layer that writes looks at the source."""

    def __init__(
        self, vocab_size: int, *, width: int, layers: int, dropout: float, start: int = START,
        smoothing: float = SMOOTHING, kernel: int = 3,
    ):  # fmt: skip
        super().__init__(vocab_size, width, start, smoothing)
        self.positions = nn.Embedding(MOST_POSITIONS, width)
        nn.init.normal_(self.positions.weight, std=width**-0.5)
        make = functools.partial(GatedConvolution, width, kernel, dropout=dropout)
        self.encoder = nn.ModuleList(make(causal=False) for _ in range(layers))
        self.decoder = nn.ModuleList(make(causal=True) for _ in range(layers))
        self.queries = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.contexts = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.dropout = nn.Dropout(dropout)

    def states(
        self, source: torch.Tensor, mask: torch.Tensor, target: torch.Tensor
    ) -> torch.Tensor:
        """See `Peer`."""
        half = math.sqrt(0.5)

        def embedded(ids: torch.Tensor) -> torch.Tensor:
            places = torch.arange(ids.shape[1], device=ids.device)
            return self.dropout(self.embedding(ids) + self.positions(places))

        read = embedded(source)
        x = read
        for layer in self.encoder:
            # Padding must not flow in from the side.
            x = (layer(x * mask[..., None]) + x) * half
        values = (x + read) * half
        start = embedded(target)
        y = start
        for layer, query, output in zip(self.decoder, self.queries, self.contexts, strict=True):
            written = layer(y)
            context = attend((query(written) + start) * half, x, values, mask)
            y = ((written + output(context)) * half + y) * half
        return self.dropout(y)


# ------------------------------------------------------------------------------------- the three


def build(kind: str, vocab_size: int, size: "Size", seed: int, start: int = START) -> nn.Module:
    """A translator of about as many parameters as the others of its size."""
    torch.manual_seed(seed)
    if kind == "attention":
        return VanillaTransformerForConditionalGeneration(
            VanillaTransformerConfig(
                vocab_size=vocab_size,
                d_model=size.width,
                d_ff=4 * size.width,
                num_heads=4,
                num_encoder_layers=size.layers,
                num_decoder_layers=size.layers,
                dropout=size.dropout,
                label_smoothing=SMOOTHING,
                pad_token_id=PAD,
                decoder_start_token_id=start,
            )
        )
    peer = RecurrentTranslator if kind == "recurrence" else ConvolutionalTranslator
    aim = parameters_of(build("attention", vocab_size, size, seed))
    # Every width is tried: the one whose parameters come nearest.
    layers = size.layers if kind == "recurrence" else 2 * size.layers
    make = functools.partial(peer, vocab_size, layers=layers, dropout=size.dropout, start=start)

    def distance(width: int) -> float:
        with torch.device("meta"):
            return abs(parameters_of(make(width=width)) - aim)

    width = min(range(8, 4 * size.width, 4), key=distance)
    torch.manual_seed(seed)
    return make(width=width)


@dataclasses.dataclass(frozen=True)
class Size:
    """Of the Transformer; the peers are made as large."""

    width: int = 96
    layers: int = 2
    dropout: float = 0.1


KINDS = ("attention", "recurrence", "convolution")


# Learning rates that each kind is tried with: an LSTM learns best at one where a post-norm
# Transformer learns nothing, and to compare them at a rate of either would be to choose the winner.
PEAKS = (1e-3, 2e-3, 5e-3, 1.5e-2, 3e-2)


def rate_of(size: Size, warmup: int, peak: float) -> Callable[[int], float]:
    """The paper's schedule, for all three."""
    factor = peak * math.sqrt(size.width * warmup)
    return lambda update: learning_rate(update, size.width, warmup, factor)


# ---------------------------------------------------------------------------------------- puzzles


def copying(length: int, count: int, generator: torch.Generator) -> Batch:
    """Write what was read: every symbol stands `length` positions after the one it copies."""
    symbols = torch.randint(4, 4 + SYMBOLS, (count, length), generator=generator)
    end = torch.full((count, 1), END)
    source = torch.cat((symbols, end), dim=1)
    return {
        "input_ids": source,
        "attention_mask": torch.ones_like(source),
        "labels": source.clone(),
    }


def matching(length: int, count: int, generator: torch.Generator) -> Batch:
    """Find the symbol that followed the asked one, about `length` positions earlier.

    Source: a key and its value, then symbols that are no keys, then `?` and the key; target: the
    value. Every pair of symbols is as likely as any other.
    """
    half = SYMBOLS // 2
    keys = torch.randint(4, 4 + half, (count, 2), generator=generator)
    # Another key with another value stands beside it, so that there is something to choose.
    keys[:, 1] = 4 + (keys[:, 0] - 4 + 1 + keys[:, 1] % (half - 1)) % half
    values = torch.randint(4 + half, 4 + SYMBOLS, (count, 2), generator=generator)
    filler = torch.randint(4 + half, 4 + SYMBOLS, (count, max(0, length - 4)), generator=generator)
    first = torch.rand(count, generator=generator) < 0.5
    pairs = torch.stack((keys[:, 0], values[:, 0], keys[:, 1], values[:, 1]), dim=1)
    swapped = pairs[:, [2, 3, 0, 1]]
    pairs = torch.where(first[:, None], pairs, swapped)
    query = torch.stack((torch.full((count,), QUERY), keys[:, 0]), dim=1)
    source = torch.cat((pairs, filler, query), dim=1)
    labels = torch.stack((values[:, 0], torch.full((count,), END)), dim=1)
    return {"input_ids": source, "attention_mask": torch.ones_like(source), "labels": labels}


PUZZLES: dict[str, Callable[[int, int, torch.Generator], Batch]] = {
    "copying": copying,
    "matching": matching,
}


def puzzle_batches(
    puzzle: str, lengths: list[int], tokens: int, seed: int, device: str
) -> Iterator[Batch]:
    """Endless batches, each of one length, all lengths alike often."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for place in torch.randperm(len(lengths), generator=generator).tolist():
            length = lengths[place]
            batch = PUZZLES[puzzle](length, max(1, tokens // length), generator)
            yield {name: tensor.to(device) for name, tensor in batch.items()}


@torch.no_grad()
def puzzle_accuracy(model: nn.Module, puzzle: str, length: int, device: str) -> float:
    """Share of symbols that are the likeliest, the end left out; of sentences not trained on."""
    model.eval()
    generator = torch.Generator().manual_seed(10_000 + length)
    right = count = 0
    for _ in range(4):
        batch = PUZZLES[puzzle](length, max(8, 2048 // length), generator)
        moved = {name: tensor.to(device) for name, tensor in batch.items()}
        found = model(**moved).logits[:, :-1].argmax(-1)
        right += int((found == moved["labels"][:, :-1]).sum())
        count += found.numel()
    return right / count


# ----------------------------------------------------------------------------------------- speeds


def clock_of(device: str) -> Callable[[], float]:
    """The processor's own time where it does the work on one thread: others may share it."""
    alone = device == "cpu" and torch.get_num_threads() == 1
    return time.process_time if alone else time.perf_counter


def speeds(
    shapes: list[tuple[int, int]], size: Size, rounds: int, device: str
) -> list[dict[str, Any]]:
    """Target tokens a second of training, of batches of (sentences, length)."""
    vocab = 4 + SYMBOLS
    models = {kind: build(kind, vocab, size, 1).to(device).train() for kind in KINDS}
    rows = []
    for sentences, length in shapes:
        batch = copying(length - 1, sentences, torch.Generator().manual_seed(1))
        moved = {name: tensor.to(device) for name, tensor in batch.items()}

        def step(model: nn.Module, inputs: Batch) -> None:
            model.zero_grad()
            model(**inputs).loss.backward()

        contenders = {kind: functools.partial(step, model, moved) for kind, model in models.items()}
        timings = measure(
            contenders, warmup=1, rounds=rounds, device=device, clock=clock_of(device)
        )
        rows.append(
            {
                "sentences": sentences,
                "length": length,
                "tokens_per_second": {
                    kind: sentences * length / one.median for kind, one in timings.items()
                },
            }
        )
        print(rows[-1], flush=True)
    return rows


# ------------------------------------------------------------------------------------------- main


def tried(
    corpus: Corpus, lengths: list[int], size: Size, updates: int, options: Any
) -> dict[str, dict[str, dict[str, float | None]]]:
    """What each rate comes to in fewer updates, by task and kind; seed 0, which is not measured.

    Returns:
        Mean training loss of the last tenth, by the rate as text; None where it was no number.
    """
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    warmup, device = max(1, updates // 5), options.device
    for task in ("translation", *PUZZLES):
        found[task] = {}
        for kind in KINDS:
            losses: dict[str, float | None] = {}
            for peak in PEAKS:
                if task == "translation":
                    start = corpus.tokenizer.bos_token_id
                    model = build(kind, len(corpus.tokenizer), size, 0, start)
                    data = batches(corpus, seed=0, device=device)
                else:
                    still = dataclasses.replace(size, dropout=0.0)
                    model = build(kind, 4 + SYMBOLS, still, 0)
                    data = puzzle_batches(task, lengths, PUZZLE_TOKENS, 0, device)
                norm = None if task == "translation" else 1.0
                rate = rate_of(size, warmup, peak)
                run = train(model.to(device), data, rate, updates=updates, max_norm=norm)
                last = run.losses[-max(1, updates // 10) :]
                losses[f"{peak:g}"] = None if run.diverged else sum(last) / len(last)
            found[task][kind] = losses
            print(task, kind, losses, flush=True)
    return found


def best_peaks(trials: dict[str, dict[str, float | None]]) -> dict[str, float]:
    """The rate with the lowest loss, by kind."""
    best = {}
    for kind, losses in trials.items():
        known = {peak: loss for peak, loss in losses.items() if loss is not None}
        best[kind] = float(min(known, key=lambda peak: known[peak])) if known else min(PEAKS)
    return best


def translations(
    corpus: Corpus, size: Size, updates: int, seed: int, peaks: dict[str, float], options: Any
) -> list[dict[str, Any]]:
    """BLEU at equal updates, and at the time that the fastest of the three took for them."""
    start = corpus.tokenizer.bos_token_id
    found: list[dict[str, Any]] = []
    for kind in KINDS:
        rate = rate_of(size, max(1, updates // 5), peaks[kind])
        fresh = functools.partial(build, kind, len(corpus.tokenizer), size, seed, start)
        model = fresh().to(options.device)
        data = functools.partial(batches, corpus, seed=seed, device=options.device)
        run = train(model, data(), rate, updates=updates, clock=clock_of(options.device))
        row = {
            "kind": kind,
            "seed": seed,
            "parameters": parameters_of(model),
            "seconds": run.seconds,
            "tokens_per_second": run.tokens / run.seconds,
            "losses": [round(one, 4) for one in run.losses],
            "validation_loss": validation_loss(model, corpus, options.device),
            "bleu": greedy_bleu(model, corpus, device=options.device),
        }
        found.append(row)
        print({name: value for name, value in row.items() if name != "losses"}, flush=True)
    least = min(row["seconds"] for row in found)
    for row in found:
        if row["seconds"] == least:
            row["bleu_at_equal_time"] = row["bleu"]
            continue
        kind = str(row["kind"])
        model = build(kind, len(corpus.tokenizer), size, seed, start).to(options.device)
        data_again = batches(corpus, seed=seed, device=options.device)
        rate = rate_of(size, max(1, updates // 5), peaks[kind])
        train(model, data_again, rate, seconds=least, clock=clock_of(options.device))
        row["bleu_at_equal_time"] = greedy_bleu(model, corpus, device=options.device)
    return found


def puzzles(
    lengths: list[int],
    size: Size,
    updates: int,
    seed: int,
    peaks: dict[str, dict[str, float]],
    options: Any,
) -> list[dict[str, Any]]:
    """Accuracy by distance, after equal updates on all of them."""
    found = []
    for puzzle in PUZZLES:
        for kind in KINDS:
            model = build(kind, 4 + SYMBOLS, dataclasses.replace(size, dropout=0.0), seed)
            model = model.to(options.device)
            data = puzzle_batches(puzzle, lengths, PUZZLE_TOKENS, seed, options.device)
            rate = rate_of(size, max(1, updates // 5), peaks[puzzle][kind])
            run = train(model, data, rate, updates=updates, max_norm=1.0)
            accuracy = [
                puzzle_accuracy(model, puzzle, length, options.device) for length in lengths
            ]
            found.append(
                {
                    "puzzle": puzzle,
                    "kind": kind,
                    "seed": seed,
                    "parameters": parameters_of(model),
                    "seconds": run.seconds,
                    "accuracy": accuracy,
                }
            )
            print(found[-1], flush=True)
    return found


def main() -> None:
    """Measures."""
    parser = claim_parser(__doc__.split("\n")[0])
    add = parser.add_argument
    add("--updates", type=int, default=600, help="of each run [600]")
    add("--longest", type=int, default=512, help="distance in the puzzles [512]")
    add(
        "--minutes",
        type=float,
        default=math.inf,
        help="no further seed is begun that would not be done by then [no limit]",
    )
    add("--speeds-again", action="store_true", help="measure them anew, keep the record's others")
    options = parser.parse_args()
    begin = time.perf_counter()
    size = Size(16, 1) if options.quick else Size()
    seeds = 1 if options.quick else options.seeds
    updates = 3 if options.quick else options.updates
    longest = 16 if options.quick else options.longest
    lengths = [2**i for i in range(3, longest.bit_length())]
    tokens, most = (64, 16) if options.quick else (2048, 512)
    by_length = [(tokens // 2**i, 2**i) for i in range(4, most.bit_length())]
    by_batch = [(2**i, 64 if not options.quick else 8) for i in range(1 if options.quick else 7)]
    rounds = 1 if options.quick else 3
    with Load() as load:
        timed: dict[str, Any] = {
            "by_length": speeds(by_length, size, rounds, options.device),
            "by_batch": speeds(by_batch, size, rounds, options.device),
        }
    timed |= {
        "others_while_timing": load.others,
        "seconds_are_of": clock_of(options.device).__name__,
    }
    if options.speeds_again:
        earlier = json.loads((options.output / "recurrence.json").read_text("utf-8"))
        raw = {**earlier["numbers"], **timed}
        publish(finding(raw), options.output, time.perf_counter() - begin, earlier)
        return
    corpus = load_corpus(*((400, 300, 4) if options.quick else ()))
    trials = tried(corpus, lengths, size, max(1, updates // 3), options)
    peaks = {task: best_peaks(some) for task, some in trials.items()}
    translated: list[dict[str, Any]] = []
    solved: list[dict[str, Any]] = []
    done = 0
    for seed in range(1, seeds + 1):
        passed = (time.perf_counter() - begin) / 60
        if done and passed * seed / done > options.minutes:
            print(f"no time for seed {seed}", flush=True)
            break
        translated += translations(corpus, size, updates, seed, peaks["translation"], options)
        solved += puzzles(lengths, size, updates, seed, peaks, options)
        done = seed
        # After each seed, so that a run that is stopped leaves what it has.
        raw = {
            "size": dataclasses.asdict(size),
            "updates": updates,
            "seeds": done,
            "distances": lengths,
            "trials": trials,
            "peaks": peaks,
            **timed,
            "translation": translated,
            "puzzles": solved,
        }
        publish(finding(raw), options.output, time.perf_counter() - begin)


def finding(raw: dict[str, Any]) -> Finding:
    """The page, from the numbers alone."""
    by_length, by_batch = raw["by_length"], raw["by_batch"]

    def of(kind: str, column: str) -> list[float]:
        return [row[column] for row in raw["translation"] if row["kind"] == kind]

    def accuracies(puzzle: str, kind: str) -> list[list[float]]:
        """By distance, of each seed."""
        some = [r["accuracy"] for r in raw["puzzles"] if (r["puzzle"], r["kind"]) == (puzzle, kind)]
        return [list(column) for column in zip(*some, strict=True)]

    figure = Figure(figsize=(16, 4))
    longer, wider, *rest = figure.subplots(1, 4)
    for kind in KINDS:
        for axes, rows, name in ((longer, by_length, "length"), (wider, by_batch, "sentences")):
            rates = [row["tokens_per_second"][kind] for row in rows]
            axes.plot([row[name] for row in rows], rates, marker="o", label=kind)
        for axes, puzzle in zip(rest, PUZZLES, strict=True):
            found = accuracies(puzzle, kind)
            means = [100 * sum(one) / len(one) for one in found]
            line = axes.plot(raw["distances"], means, marker="o", label=kind)[0]
            for distance, values in zip(raw["distances"], found, strict=True):
                points = [100 * value for value in values]
                axes.plot([distance] * len(points), points, ".", ms=4, color=line.get_color())
    tokens = by_length[0]["sentences"] * by_length[0]["length"]
    longer.set(xlabel="length", title=f"Training, {tokens:,} tokens a batch")
    wider.set(xlabel="sentences in a batch", title=f"Training, length {by_batch[0]['length']}")
    for axes, puzzle in zip(rest, PUZZLES, strict=True):
        axes.set(xlabel="distance", ylabel="accuracy (%)", title=puzzle.capitalize(), ylim=(0, 103))
    ticks = ([row["length"] for row in by_length], [row["sentences"] for row in by_batch])
    for axes, places in zip(
        (longer, wider, *rest), (*ticks, raw["distances"], raw["distances"]), strict=True
    ):
        axes.set_xscale("log", base=2)
        axes.set_xticks(places, [str(place) for place in places])
        axes.grid(alpha=0.3)
    for axes in (longer, wider):
        axes.set(ylabel="tokens/s")
        axes.set_ylim(bottom=0)
    longer.legend()
    figure.tight_layout()

    def growth(rows: list[dict[str, Any]], kind: str) -> float:
        return rows[-1]["tokens_per_second"][kind] / rows[0]["tokens_per_second"][kind]

    last = len(raw["distances"]) - 1
    reading = [
        f"From {by_length[0]['length']} to {by_length[-1]['length']} tokens a sentence, with as "
        "many tokens in a batch, speed changes by a factor of "
        + ", ".join(f"{growth(by_length, kind):.2f} ({kind})" for kind in KINDS)
        + f"; from a batch of {by_batch[0]['sentences']} to one of {by_batch[-1]['sentences']} by "
        + ", ".join(f"{growth(by_batch, kind):.1f} ({kind})" for kind in KINDS)
        + ".",
        f"BLEU after {raw['updates']} updates: "
        + ", ".join(f"{with_interval(of(kind, 'bleu'))} ({kind})" for kind in KINDS)
        + "; in the time of the fastest: "
        + ", ".join(f"{with_interval(of(kind, 'bleu_at_equal_time'))} ({kind})" for kind in KINDS)
        + ".",
        f"At a distance of {raw['distances'][last]}: "
        + "; ".join(
            f"{puzzle} "
            + ", ".join(
                f"{with_interval([100 * one for one in accuracies(puzzle, kind)[last]])}% ({kind})"
                for kind in KINDS
            )
            for puzzle in PUZZLES
        )
        + ".",
    ]
    tables = [
        Table(
            "Translating the embedded corpus",
            ["", "parameters", "tokens/s", "loss", "BLEU", "BLEU at equal time"],
            [
                [
                    kind,
                    f"{of(kind, 'parameters')[0]:,.0f}",
                    with_interval(of(kind, "tokens_per_second"), 0),
                    with_interval(of(kind, "validation_loss"), 2),
                    with_interval(of(kind, "bleu")),
                    with_interval(of(kind, "bleu_at_equal_time")),
                ]
                for kind in KINDS
            ],
        ),
        *(
            Table(
                f"Tokens/s in training, by {name}",
                ["batch × length", *KINDS],
                [
                    [
                        f"{row['sentences']} × {row['length']}",
                        *(f"{row['tokens_per_second'][kind]:,.0f}" for kind in KINDS),
                    ]
                    for row in rows
                ],
            )
            for name, rows in (("length", by_length), ("batch", by_batch))
        ),
        *(
            Table(
                f"{puzzle.capitalize()}: accuracy (%) by distance",
                ["distance", *KINDS],
                [
                    [
                        str(distance),
                        *(
                            with_interval([100 * one for one in accuracies(puzzle, kind)[i]])
                            for kind in KINDS
                        ),
                    ]
                    for i, distance in enumerate(raw["distances"])
                ],
            )
            for puzzle in PUZZLES
        ),
    ]
    tables.append(
        Table(
            f"Learning rates tried: training loss after {max(1, raw['updates'] // 3)} updates",
            ["", *next(iter(raw["trials"]["translation"].values()))],
            [
                [
                    f"{task}, {kind}",
                    *("diverged" if one is None else f"{one:.2f}" for one in losses.values()),
                ]
                for task, kinds in raw["trials"].items()
                for kind, losses in kinds.items()
            ],
        )
    )
    size, shared = raw["size"], "Speeds are medians of turns."
    if (others := raw["others_while_timing"]) is not None:
        shared += f" Other processes took {others:.0%} of the machine meanwhile."
    if raw["seconds_are_of"] == "process_time":
        shared += " All seconds are the processor's own, of which other processes take none."
    return Finding(
        name="recurrence",
        title="Attention, recurrence and convolution",
        claim="Self-attention joins all positions by a constant number of sequential operations, "
        "recurrence by O(n), convolution by O(log n) or O(n/k) layers; shorter paths make "
        "long-range dependencies easier to learn, and less sequence makes training faster "
        "(section 4, Table 1).",
        method=f"Three translators of as many parameters: a Transformer (d_model {size['width']}, "
        f"{size['layers']} + {size['layers']} layers), an LSTM with global attention, gated "
        f"convolutions of width 3 with {2 * size['layers']} + {2 * size['layers']} layers and "
        "attention in each layer of the decoder. One vocabulary, the same batches, Adam and "
        "schedule; the peak of the rate is that of a few which did best in a third of the updates, "
        f"for each kind and task. {raw['updates']} updates, {raw['seeds']} seeds, mean ± 95% "
        "interval. Puzzles: copying a random sequence, and finding what followed a symbol that "
        "many positions earlier, where two pairs stand, so that a guess is right half "
        "the time; all distances are trained alike, in batches of "
        f"{PUZZLE_TOKENS:,} symbols, and measured on new sequences.",
        reading=reading,
        tables=tables,
        figure=figure,
        limits="Small models of equal parameters and few updates, tuned in their learning rate "
        f"alone. {shared} A "
        "processor runs the steps of a recurrence without the launch costs of a GPU, which favours "
        "it here. The convolutional model has learned positions, which it must see to know.",
        raw=raw,
    )


if __name__ == "__main__":
    main()
