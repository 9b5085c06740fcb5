"""Train on the embedded corpora, translate and infer, score both, draw what the model does.

Run by `make demo`. Everything it writes goes into one directory, made anew each time.
"""

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers.utils import logging as transformers_logging

from vanilla_transformer.data.inference_corpora import load_inference
from vanilla_transformer.data.tiny_world import generate_translation
from vanilla_transformer.generation import translate
from vanilla_transformer.inspection.attention import write_attention_page
from vanilla_transformer.inspection.curves import plot_training
from vanilla_transformer.recipes import execute, find_recipe, load_model
from vanilla_transformer.training.inference import classify_pairs

SHOWN = 6
PHENOMENA = ("negation", "quantifier", "coreference")


def main() -> None:
    """Runs the recipes `tiny-world` and `tiny-world-inference` and shows what came of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("demo"), help="[demo]")
    output = parser.parse_args().output
    if output.exists():
        if not (output / "recipe.json").exists() and any(output.iterdir()):
            parser.error(f"{output} holds something else than a demo; choose another --output")
        shutil.rmtree(output)
    transformers_logging.disable_progress_bar()

    started = time.monotonic()
    recipe = find_recipe("tiny-world")
    print(f"Training on {recipe.train_limit:,} sentence pairs of a small world, English to German.")
    results = execute(recipe, output)
    scores = results["tests"]["test"]

    model, tokenizer = load_model(output)
    pairs = list(generate_translation("test", SHOWN))
    sources = [pair["source"] for pair in pairs]
    print("\nHeld-out sentences: every one has a combination of words never seen in training.")
    for pair, hypotheses in zip(pairs, translate(model, tokenizer, sources), strict=True):
        verdict = "as expected" if hypotheses[0].text == pair["target"] else pair["target"]
        print(f"  {pair['source']}\n    {hypotheses[0].text}   [{verdict}]")

    plot_training(output / "training_log.jsonl", output / "training.png")
    longest = max(sources, key=len)
    write_attention_page(model, tokenizer, longest, output / "attention.html")
    inferences = show_inference(output / "inference")
    print(
        f"\nAccuracy {inferences['accuracy']:.1f} on {inferences['examples']} held-out inferences"
    )
    print(f"BLEU {scores['bleu']['score']:.2f} on {scores['sentences']} held-out sentences")
    print(f"     {scores['bleu']['signature']}")
    print(f"{time.monotonic() - started:.0f} seconds, {results['parameters']:,} parameters")
    print(f"Learning curve:  {output / 'training.png'}")
    print(f"Attention maps:  {output / 'attention.html'} (open it in a browser)")
    print(f"Model:           {output / 'model'}")
    print(f'Try it:          echo "{sources[0]}" | vanilla-transformer translate {output}')


def show_inference(output: Path) -> dict[str, Any]:
    """Trains on pairs of sentences and answers one pair of each phenomenon.

    Returns:
        Scores on the test set.
    """
    recipe = find_recipe("tiny-world-inference")
    print(
        f"\nTraining on {recipe.train_limit:,} pairs of sentences: does one follow from the other?"
    )
    results = execute(recipe, output)
    model, tokenizer = load_model(output, kind="inference")
    pairs, _ = load_inference("tiny_world", "test", limit=100)
    phenomena = list(pairs["phenomena"])
    chosen = pairs.select([phenomena.index([name]) for name in PHENOMENA])
    names = pairs.features["label"].names
    print("\nHeld-out pairs of a negation, a quantifier and a pronoun:")
    for pair, likely in zip(
        chosen, classify_pairs(Accelerator(), model, tokenizer, chosen), strict=True
    ):
        found, expected = names[likely.argmax()], names[pair["label"]]
        verdict = "as expected" if found == expected else expected
        print(f"  {pair['premise']}\n  {pair['hypothesis']}")
        print(f"    {found}, {likely.max():.0%}   [{verdict}]")
    plot_training(output / "training_log.jsonl", output / "training.png")
    scores: dict[str, Any] = results["tests"]["test"]
    return scores


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt as stop:
        raise SystemExit(str(stop) or "interrupted") from None
