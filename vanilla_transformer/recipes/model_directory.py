"""Whether a directory holds a whole model of this package, before anything large is built of it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ..configuration_vanilla_transformer import VanillaTransformerConfig
from ..registration import AUTO_CLASSES

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

# Layers that are built on the word of config.json alone, before the weights have confirmed them.
_MANY_LAYERS = 1_000


def read_config(directory: Path) -> VanillaTransformerConfig:
    """The configuration of a model of this package.

    Raises:
        ValueError: It cannot be read, holds values that cannot be, or is another model's.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise ValueError(f"{directory} holds no model: there is no {path.name} in it")
    try:
        kind = json.loads(path.read_text("utf-8")).get("model_type")
        if kind != VanillaTransformerConfig.model_type:
            raise ValueError(f"model_type is {kind!r} and not 'vanilla_transformer'")
        return VanillaTransformerConfig.from_pretrained(directory)
    # `@strict` has errors of its own, a list in place of the mapping yet others.
    except Exception as error:
        reason = (str(error).strip() or repr(error)).splitlines()[-1].strip()
        raise ValueError(f"{path} is none of this package's models: {reason}") from error


def check_weights(directory: Path, config: VanillaTransformerConfig, architecture: str) -> None:
    """Checks that every weight of a model is there, in files that are whole, and in its shape.

    Only the headers of the files are read and nothing is allocated, so that a file which claims to
    be huge costs nothing.

    Args:
        directory: That `save_pretrained` wrote.
        config: Of the model.
        architecture: Name of its class.

    Raises:
        ValueError: A file is missing, lies outside the directory, is cut short or no safetensors;
            or the weights are not those that the configuration describes.
    """
    classes = {found.__name__: found for found in AUTO_CLASSES.values()}
    if architecture not in classes:
        raise ValueError(
            f"{directory / 'config.json'}: architectures must name one of {', '.join(classes)}; "
            "save the model with save_pretrained"
        )
    found: dict[str, tuple[int, ...]] = {}
    for path in weight_files(directory):
        try:
            # Also compares what the header says with the length of the file.
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118 (the file itself cannot be iterated over)
                    found[name] = tuple(file.get_slice(name).get_shape())
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{path} cannot be read ({error}): it is cut short or no safetensors file; save "
                "the model again"
            ) from error
    layers = max(config.num_encoder_layers, config.num_decoder_layers)
    if layers > max(_MANY_LAYERS, len(found)):
        raise ValueError(
            f"{directory}: its config.json speaks of {layers:,} layers, its weights are "
            f"{len(found):,} tensors; save the model again"
        )
    try:
        with torch.device("meta"):
            model = classes[architecture](config)
    # Sizes whose product no computer can count.
    except (RuntimeError, OverflowError) as error:
        raise ValueError(f"{directory}: its config.json describes no model: {error}") from error
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    missing = sorted(expected.keys() - found.keys() - model.all_tied_weights_keys.keys())
    wrong = [
        f"{name} is {list(found[name])} for {list(shape)}"
        for name, shape in expected.items()
        if found.get(name, shape) != shape
    ]
    problems = [f"{name} is missing" for name in missing] + wrong
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(
            f"{directory}: its weights are not those of its config.json: "
            f"{', '.join(problems[:5])}{more}; save the model again"
        )


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a model, one or the shards that its index names.

    Raises:
        ValueError: There are none, the index cannot be read, or it names what is not there or is
            not in the directory.
    """
    if (directory / WEIGHTS).is_file():
        return [directory / WEIGHTS]
    index = directory / INDEX
    if not index.is_file():
        raise ValueError(
            f"{directory} has no {WEIGHTS}, and no other format is read; save the model with "
            "save_pretrained"
        )
    try:
        content = json.loads(index.read_text("utf-8"))
        names = sorted(set(content["weight_map"].values()))
        # What loads it looks into both.
        dict.items(content.get("metadata", {}))
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError(f"{index} cannot be read ({error}); save the model again") from error
    # A path in the index could make any file of the machine part of the model.
    strange = [str(name) for name in names if Path(str(name)).name != name]
    if strange:
        raise ValueError(f"{index} names files outside its directory: {', '.join(strange[:5])}")
    missing = [name for name in names if not (directory / name).is_file()]
    if missing:
        raise ValueError(f"{index} names files that are not there: {', '.join(missing[:5])}")
    return [directory / name for name in names]
