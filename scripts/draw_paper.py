"""Draws what the paper has without any data: positional encodings and the learning rate.

    python scripts/draw_paper.py pictures

Writes `positions_<layout>.png` for each layout of sinusoids, and `learning_rate.png`.
"""

import argparse
from pathlib import Path

from vanilla_transformer.inspection.positions import plot_learning_rate, plot_positions


def main() -> None:
    """Draws."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("output", type=Path, help="directory to write into")
    parser.add_argument("--d-model", type=int, default=512)
    parser.add_argument("--length", type=int, default=100, help="positions")
    arguments = parser.parse_args()
    for layout in ("interleaved", "concatenated", "concatenated_inclusive"):
        path = arguments.output / f"positions_{layout}.png"
        print(
            plot_positions(path, d_model=arguments.d_model, length=arguments.length, layout=layout)
        )
    print(plot_learning_rate(arguments.output / "learning_rate.png"))


if __name__ == "__main__":
    main()
