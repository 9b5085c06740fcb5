"""Why the scores are divided by √d_k, why the rate is warmed up, and where the norm belongs.

    python scripts/claim_training.py

Sections 3.1, 3.2.1 and 5.3 of the paper. What later work found about the place of the norm (Xiong
et al. 2020, "On Layer Normalization in the Transformer Architecture") is measured beside it.
"""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from claim_runs import Batch, Corpus, batches, load_corpus, train, validation_loss
from claims import Finding, Table, claim_parser, publish, with_interval
from matplotlib.figure import Figure

from vanilla_transformer import (
    VanillaTransformerConfig,
    VanillaTransformerForConditionalGeneration,
)

# Whether scores are scaled, where the norm stands, and updates of warm-up.
SETTINGS: dict[str, dict[str, Any]] = {
    "the paper's: post-norm, scaled, warm-up": {"norm": "post", "scaled": True, "warm": True},
    "post-norm, no warm-up": {"norm": "post", "scaled": True, "warm": False},
    "post-norm, not scaled": {"norm": "post", "scaled": False, "warm": True},
    "pre-norm, warm-up": {"norm": "pre", "scaled": True, "warm": True},
    "pre-norm, no warm-up": {"norm": "pre", "scaled": True, "warm": False},
    "pre-norm, not scaled": {"norm": "pre", "scaled": False, "warm": True},
}


def saturation(d_k: int, *, scaled: bool, keys: int = 64, draws: int = 512) -> dict[str, float]:
    """Softmax of products of vectors whose numbers are drawn from N(0, 1).

    Args:
        d_k: Of queries and keys.
        scaled: Whether products are divided by √d_k.
        keys: That a query attends to.
        draws: Queries, each with keys of its own.

    Returns:
        `variance` of the products; `largest` weight and `entropy` in nats, means over queries;
        `gradient`: mean norm of the softmax's Jacobian, ‖diag(p) - ppᵀ‖ by Frobenius.
    """
    generator = torch.Generator().manual_seed(d_k)
    query = torch.randn(draws, 1, d_k, generator=generator)
    scores = (query * torch.randn(draws, keys, d_k, generator=generator)).sum(-1)
    if scaled:
        scores = scores / math.sqrt(d_k)
    p = torch.softmax(scores, dim=-1)
    jacobian = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return {
        "variance": float(scores.var()),
        "largest": float(p.max(-1).values.mean()),
        "entropy": float(torch.special.entr(p).sum(-1).mean()),
        "gradient": float(jacobian.flatten(1).norm(dim=-1).mean()),
    }


def build(
    vocab_size: int, norm: str, *, scaled: bool, layers: int, d_model: int, seed: int
) -> VanillaTransformerForConditionalGeneration:
    """A translator; `scaled=False` leaves the √d_k out of every attention."""
    torch.manual_seed(seed)
    config = VanillaTransformerConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        d_ff=4 * d_model,
        # One head, so that d_k is as large as the model allows.
        num_heads=1,
        num_encoder_layers=layers,
        num_decoder_layers=layers,
        layer_norm_position=norm,
        dropout=0.0,
    )
    model = VanillaTransformerForConditionalGeneration(config)
    if not scaled:
        for module in model.modules():
            if hasattr(module, "scaling"):
                module.scaling = 1.0
    return model


def layer_gradients(
    model: VanillaTransformerForConditionalGeneration, batch: Batch
) -> dict[str, list[float]]:
    """Norm of the gradient of each layer's feed-forward output matrix, before any update.

    Returns:
        `encoder` and `decoder`, from the layer next to the embedding on.
    """
    model.train()
    model.zero_grad()
    model(**batch).loss.backward()
    stacks = {"encoder": model.model.encoder, "decoder": model.model.decoder}
    return {
        name: [float(layer.fc2.weight.grad.norm()) for layer in stack.layers]
        for name, stack in stacks.items()
    }


def schedule(peak: float, warmup: int) -> Callable[[int], float]:
    """Linear up to `peak` at update `warmup`, then falling with the square root (5.3).

    Without warm-up (1) the rate starts at the peak, and from update 100 falls as the other does
    from there.
    """
    start = max(warmup, 100)
    return lambda update: peak * min(update / warmup, 1.0) * min(1.0, math.sqrt(start / update))


def runs(
    corpus: Corpus, data: Callable[[int], Iterator[Batch]], options: dict[str, Any]
) -> list[dict[str, Any]]:
    """Trains every setting with every seed and rate."""
    found = []
    for name, setting in SETTINGS.items():
        for peak in options["peaks"]:
            for seed in range(1, options["seeds"] + 1):
                model = build(
                    len(corpus.tokenizer),
                    setting["norm"],
                    scaled=setting["scaled"],
                    layers=options["layers"],
                    d_model=options["d_model"],
                    seed=seed,
                ).to(options["device"])
                rate = schedule(peak, options["warmup"] if setting["warm"] else 1)
                run = train(model, data(seed), rate, updates=options["updates"])
                loss = None if run.diverged else validation_loss(model, corpus, options["device"])
                found.append(
                    {
                        "setting": name,
                        "peak": peak,
                        "seed": seed,
                        "validation_loss": loss,
                        "diverged": run.diverged,
                        # Enough for a curve, and half the size of a file.
                        "losses": [round(one, 4) for one in run.losses],
                    }
                )
                print(f"{name}, rate {peak:g}, seed {seed}: {loss}", flush=True)
    return found


def main() -> None:
    """Measures."""
    parser = claim_parser(__doc__.split("\n")[0])
    add = parser.add_argument
    add("--updates", type=int, default=300, help="of each run [300]")
    add("--layers", type=int, default=4, help="of each stack [4]")
    add("--d-model", type=int, default=96)
    add("--peaks", type=float, nargs="+", default=[5e-4, 2e-3], help="learning rates [5e-4 2e-3]")
    options = parser.parse_args()
    begin = time.perf_counter()
    settings = {
        "updates": 3 if options.quick else options.updates,
        "layers": 2 if options.quick else options.layers,
        "d_model": 16 if options.quick else options.d_model,
        "warmup": 2 if options.quick else 100,
        "seeds": 1 if options.quick else options.seeds,
        "peaks": options.peaks[:1] if options.quick else options.peaks,
        "device": options.device,
    }
    corpus = load_corpus(*((400, 300, 4) if options.quick else ()))

    def data(seed: int) -> Iterator[Batch]:
        return batches(corpus, seed=seed, device=options.device)

    sizes = [2**i for i in range(2, 10)]
    softmax = {
        name: [saturation(d_k, scaled=scaled) for d_k in sizes]
        for name, scaled in (("scaled", True), ("not scaled", False))
    }
    gradients = {}
    for norm in ("post", "pre"):
        model = build(
            len(corpus.tokenizer),
            norm,
            scaled=True,
            layers=settings["layers"],
            d_model=settings["d_model"],
            seed=1,
        )
        gradients[norm] = layer_gradients(model.to(options.device), next(data(1)))
    found = runs(corpus, data, settings)
    raw = {
        "settings": settings,
        "softmax": {"d_k": sizes, **softmax},
        "gradients": gradients,
        "runs": found,
    }
    publish(finding(raw), options.output, time.perf_counter() - begin)


def finding(raw: dict[str, Any]) -> Finding:
    """The page, from the numbers alone."""
    settings, sizes = raw["settings"], raw["softmax"]["d_k"]
    scaled, plain = raw["softmax"]["scaled"], raw["softmax"]["not scaled"]
    by_setting = {
        (name, peak): [run for run in raw["runs"] if (run["setting"], run["peak"]) == (name, peak)]
        for name in SETTINGS
        for peak in settings["peaks"]
    }

    def cell(some: list[dict[str, Any]]) -> str:
        values = [run["validation_loss"] for run in some if run["validation_loss"] is not None]
        lost = len(some) - len(values)
        text = with_interval(values, 2) if values else ""
        return f"{text} ({lost} diverged)".strip() if lost else text

    figure = Figure(figsize=(14, 4.4))
    left, middle, right = figure.subplots(1, 3)
    for name, rows, style in (("÷ √d_k", scaled, "-"), ("not scaled", plain, "--")):
        for number, what in enumerate(("largest", "gradient")):
            label = f"{'largest weight' if what == 'largest' else what}, {name}"
            left.plot(sizes, [row[what] for row in rows], style, color=f"C{number}", label=label)
    left.set_xscale("log", base=2)
    left.set_xticks(sizes, [str(size) for size in sizes])
    left.set(xlabel="d_k", title="Softmax over 64 keys")
    for norm, stacks in raw["gradients"].items():
        for stack, values in stacks.items():
            middle.semilogy(
                range(1, len(values) + 1),
                values,
                "-" if norm == "post" else "--",
                color="C0" if stack == "encoder" else "C1",
                marker="o",
                label=f"{norm}-norm, {stack}",
            )
    middle.set(xlabel="layer", title="Norm of the gradient at the start")
    middle.set_xticks(range(1, settings["layers"] + 1))
    peak = max(settings["peaks"])
    for name in SETTINGS:
        curves = [run["losses"] for run in by_setting[name, peak]]
        length = min(map(len, curves))
        mean = torch.tensor([curve[:length] for curve in curves]).mean(0)
        window = max(1, length // 30)
        smooth = mean.unfold(0, window, 1).mean(-1) if length else mean
        right.plot(smooth.tolist(), label=name)
    right.set(xlabel="update", ylabel="training loss", title=f"Peak rate {peak:g}")
    for axes in (left, middle, right):
        # Below, where no curve is.
        axes.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.17))
        axes.grid(alpha=0.3)
    figure.tight_layout()

    ratio = {
        norm: stacks["decoder"][-1] / stacks["decoder"][0]
        for norm, stacks in raw["gradients"].items()
    }
    reading = [
        f"At d_k = {sizes[-1]} products of vectors of variance 1 have a variance of "
        f"{plain[-1]['variance']:.0f}; unscaled, the largest of 64 weights is "
        f"{plain[-1]['largest']:.2f} on the mean and the softmax's gradient "
        f"{scaled[-1]['gradient'] / plain[-1]['gradient']:.1f} times smaller than scaled.",
        f"Before the first update the last decoder layer's gradient is {ratio['post']:.1f} times "
        f"the first one's with post-norm, {ratio['pre']:.1f} times with pre-norm.",
        "Validation loss after "
        f"{settings['updates']} updates at the higher rate: "
        + "; ".join(f"{name} {cell(by_setting[name, peak])}" for name in SETTINGS)
        + ".",
    ]
    tables = [
        Table(
            f"Validation loss (nats a token) after {settings['updates']} updates",
            ["", *(f"peak rate {peak:g}" for peak in settings["peaks"])],
            [
                [name, *(cell(by_setting[name, peak]) for peak in settings["peaks"])]
                for name in SETTINGS
            ],
        ),
        Table(
            "Softmax over 64 keys",
            [
                "d_k",
                "variance",
                "largest weight",
                "entropy",
                "gradient",
                "÷ √d_k: largest",
                "÷ √d_k: gradient",
            ],
            [
                [
                    str(d_k),
                    f"{b['variance']:.1f}",
                    f"{b['largest']:.2f}",
                    f"{b['entropy']:.2f}",
                    f"{b['gradient']:.3f}",
                    f"{a['largest']:.2f}",
                    f"{a['gradient']:.3f}",
                ]
                for d_k, a, b in zip(sizes, scaled, plain, strict=True)
            ],
        ),
    ]
    return Finding(
        name="training",
        title="Why √d_k, why warm-up, where the norm belongs",
        claim="For large d_k the products grow large and push the softmax into regions of "
        "extremely small gradients, hence 1/√d_k (3.2.1, footnote 4); the rate is raised over the "
        "first updates (5.3); the norm follows the residual sum (3.1).",
        method=f"Translators of the embedded corpus, {settings['layers']} + {settings['layers']} "
        f"layers, d_model {settings['d_model']}, one head, no dropout, no clipping, "
        f"{settings['seeds']} seeds each, mean ± 95% interval. Warm-up of {settings['warmup']} "
        "updates, or none: the rate starts at its peak.",
        reading=reading,
        tables=tables,
        figure=figure,
        limits="Small models and few updates: the first minute of training, not where it ends. "
        "Adam rescales gradients, so that small ones are not small steps.",
        raw=raw,
    )


if __name__ == "__main__":
    main()
