"""What the sources' own code once gave for small random checkpoints, for where it is missing.

`fingerprints.json` holds an example of a family: options and shapes of tensors, whose values follow
from a seed, ids, and the encoder states and logits that the source's code gave for them.
`scripts/record_fingerprints.py` writes it.
"""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from .parity import Example, Parity, compare_examples, random_batches, run_reference
from .source import Checkpoint, Family
from .weights import build_model

FINGERPRINTS = "fingerprints.json"


def check_fingerprint(family: Family) -> Parity:
    """Converts the family's stored example, and compares it with what its own code gave for it.

    Raises:
        ImportError: The family has none: its code can always be had.
    """
    text = importlib.resources.files(__package__).joinpath(FINGERPRINTS).read_text("utf-8")
    stored = json.loads(text).get(family.name)
    if stored is None:
        raise ImportError(f"{family.title}: neither its code nor a stored example of it is here")
    model = build_model(family.convert(example_checkpoint(stored)))
    expected = Example(
        *(torch.tensor(stored[name]) for name in ("input_ids", "attention_mask")),
        *(torch.tensor(stored[name]) for name in ("decoder_input_ids", "states", "logits")),
    )
    return compare_examples(model, [expected], f"{stored['reference']}, a stored example,")


def record_fingerprint(family: Family, like: Checkpoint, reference: str, seed: int) -> dict:
    """An entry of `fingerprints.json` for a checkpoint with the options and shapes of `like`.

    Args:
        family: Whose code is installed.
        like: A small one.
        reference: Name and version of that code.
        seed: Of the tensors' values.
    """
    stored: dict[str, Any] = {
        "reference": reference,
        "seed": seed,
        "options": like.options,
        "shapes": {name: list(tensor.shape) for name, tensor in like.tensors.items()},
    }
    checkpoint = example_checkpoint(stored)
    model = build_model(family.convert(checkpoint))
    batches = random_batches(model, lengths=(6,), sentences=3, seed=seed)
    example = next(run_reference(family.reference(checkpoint), batches))
    # Six digits after the point are below what the comparison allows.
    return stored | {
        "input_ids": example.input_ids.tolist(),
        "attention_mask": example.attention_mask.tolist(),
        "decoder_input_ids": example.decoder_input_ids.tolist(),
        "states": np.round(example.states.double().numpy(), 6).tolist(),
        "logits": np.round(example.logits.double().numpy(), 6).tolist(),
    }


def example_checkpoint(stored: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint whose tensors follow from the seed: N(0, 0.3), the same on every machine."""
    # The legacy generator: its stream is fixed for ever, which that of the newer ones is not.
    random = np.random.RandomState(stored["seed"])
    tensors = {
        name: torch.from_numpy(0.3 * random.standard_normal(shape)).float()
        for name, shape in stored["shapes"].items()
    }
    return Checkpoint(tensors, dict(stored["options"]))
