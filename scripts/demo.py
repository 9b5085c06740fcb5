"""Train a Transformer on the embedded corpus, score it, translate with it, draw what it does.

Run by `make demo`. Everything it writes goes into one directory, made anew each time.
"""

import argparse
import shutil
import time
from pathlib import Path

from transformers.utils import logging as transformers_logging

from vanilla_transformer.data.tiny_world import generate_translation
from vanilla_transformer.generation import translate
from vanilla_transformer.inspection.attention import write_attention_page
from vanilla_transformer.inspection.curves import plot_training
from vanilla_transformer.recipes import execute, find_recipe, load_model

SHOWN = 6


def main() -> None:
    """Runs the recipe `tiny-world` and shows what came of it."""
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
    print(f"\nBLEU {scores['bleu']['score']:.2f} on {scores['sentences']} held-out sentences")
    print(f"     {scores['bleu']['signature']}")
    print(f"{time.monotonic() - started:.0f} seconds, {results['parameters']:,} parameters")
    print(f"Learning curve:  {output / 'training.png'}")
    print(f"Attention maps:  {output / 'attention.html'} (open it in a browser)")
    print(f"Model:           {output / 'model'}")
    print(f'Try it:          echo "{sources[0]}" | vanilla-transformer translate {output}')


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt as stop:
        raise SystemExit(str(stop) or "interrupted") from None
