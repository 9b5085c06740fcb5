"""Finding and loading trained models, and the machine that a measured figure depends on."""

import json
import os
import platform
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from huggingface_hub import HfApi, try_to_load_from_cache
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..configuration_vanilla_transformer import VanillaTransformerConfig
from ..tokenization import load_tokenizer
from .model_directory import check_weights, read_config

# What a model does.
Kind = Literal["text", "question_answering", "inference"]

# Loader and words for it, and how the names of the classes end that do it.
_KINDS: dict[Kind, tuple[Any, str]] = {
    "text": (AutoModelForSeq2SeqLM, "writing text"),
    "question_answering": (AutoModelForQuestionAnswering, "question answering"),
    "inference": (AutoModelForSequenceClassification, "inference"),
}
_ENDINGS: dict[str, Kind] = {
    "ForConditionalGeneration": "text",
    "MTModel": "text",
    "ForQuestionAnswering": "question_answering",
    "ForSequenceClassification": "inference",
}


def locate_model(path_or_id: str | Path) -> str:
    """What `from_pretrained` is to be given: a model's directory, or a Hub id that is there.

    Args:
        path_or_id: A model directory, a run directory (its `model/` is taken) or a Hub id.

    Raises:
        ValueError: There is no model.
    """
    path = Path(path_or_id).expanduser()
    if path.is_dir():
        for directory in (path, path / "model"):
            if (directory / "config.json").exists():
                return str(directory)
        raise ValueError(
            f"{path} holds no model: neither config.json nor model/config.json is there; "
            "give the directory of a model or of a finished run"
        )
    name = str(path_or_id)
    if path.exists():
        raise ValueError(f"{path} is a file; give the directory of a model or of a run")
    try:
        is_cached = isinstance(try_to_load_from_cache(name, "config.json"), str)
        if not is_cached:
            # Asked once: `from_pretrained` would repeat itself for the better part of a minute.
            HfApi().model_info(name, timeout=10)
    # The errors of the Hub's client and of its HTTP library have no common base.
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{name} is neither a directory nor a model that the Hub gave ({reason}); check the "
            "path, or the id and the network"
        ) from error
    return name


def load_model(
    path_or_id: str | Path,
    device: str | None = None,
    *,
    kind: Kind = "text",
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A trained model and its tokenizer, ready to predict.

    Args:
        path_or_id: A model directory, a run directory (its `model/` is taken) or a Hub id.
        device: Where to; by default a GPU where there is one.
        kind: What it is to do: write text, point at an answer, or classify pairs of sentences.

    Raises:
        ValueError: There is no model, or one of another kind, or no tokenizer, or no such device;
            or a directory of this package's that is not whole (`check_weights`).
    """
    name = locate_model(path_or_id)
    found = model_kind(name)
    if found != kind:
        raise ValueError(
            f"{path_or_id} is a model for {_KINDS[found][1]}, not for {_KINDS[kind][1]}; give "
            "another model, or train this one for it with --init"
        )
    if is_own_directory(name):
        # `from_pretrained` fills in random numbers for what is missing, and takes shards from
        # anywhere.
        config = read_config(Path(name))
        check_weights(Path(name), config, (config.architectures or [""])[0])
    tokenizer = load_tokenizer(name)
    try:
        model: PreTrainedModel = _KINDS[kind][0].from_pretrained(name, trust_remote_code=False)
    except (ValueError, OSError, torch.OutOfMemoryError):
        raise
    # Its generation config may hold anything.
    except Exception as error:
        raise ValueError(
            f"{path_or_id} cannot be loaded ({error!r}); save the model again"
        ) from error
    if device is None:
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        device = "cpu" if accelerator is None else accelerator.type
    try:
        return model.eval().to(device), tokenizer
    except RuntimeError as error:
        raise ValueError(f"device ({device!r}) cannot be used: {error}") from error


def model_kind(path_or_id: str | Path) -> Kind:
    """What a model was trained to do, by the class that its configuration names.

    Raises:
        ValueError: There is no model, or one with no such head.
    """
    name = locate_model(path_or_id)
    if is_own_directory(name):
        config = read_config(Path(name))
    else:
        # Nor are users asked: they would have to answer in the middle of a pipe.
        try:
            config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        except (ValueError, OSError):
            raise
        # It looks into what it reads before it looks at what that is.
        except Exception as error:
            raise ValueError(
                f"{path_or_id}: its configuration cannot be read ({error!r}); save the model again"
            ) from error
    named = config.architectures
    architecture = str(named[0]) if isinstance(named, list) and named else ""
    kind = class_kind(architecture)
    if kind is not None:
        return kind
    raise ValueError(
        f"{path_or_id} is a {architecture or 'model of an unnamed class'}, which has no head "
        "for a task; go on from it with train --init"
    )


def is_own_directory(name: str) -> bool:
    """Whether `name` is a directory, not a Hub id, that says to hold a model of this package.

    Raises:
        ValueError: Its `config.json` cannot be read.
    """
    path = Path(name) / "config.json"
    if not path.is_file():
        return False
    try:
        kind = json.loads(path.read_text("utf-8")).get("model_type")
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read ({error}); it must be a JSON object") from error
    return bool(kind == VanillaTransformerConfig.model_type)


def class_kind(name: str) -> Kind | None:
    """What models of the class of that name do; None for one with no head for a task."""
    return next((kind for ending, kind in _ENDINGS.items() if name.endswith(ending)), None)


def environment() -> dict[str, Any]:
    """Hardware and versions that a measured figure depends on."""
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def describe_machine() -> str:
    """The device a run would use here, with its memory, and how many there are."""
    count = torch.cuda.device_count()
    if not count:
        return f"{_processor()}, {os.cpu_count()} cores, no GPU"
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    return f"{count} x {torch.cuda.get_device_name()} ({memory:.0f} GiB)"


def _processor() -> str:
    # Linux tells the model of its processor in a file only.
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text("utf-8").splitlines() if cpuinfo.exists() else []
    models = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    return ", ".join(sorted(models)) or platform.processor() or platform.machine()
