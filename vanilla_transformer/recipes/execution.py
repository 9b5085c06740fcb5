"""A whole run, from text to test scores, and what it will cost."""

import dataclasses
import json
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from transformers import set_seed

from ..atomic_file import atomic_file
from ..configuration_vanilla_transformer import VanillaTransformerConfig
from ..tokenization import load_tokenizer, train_tokenizer
from ..training.checkpointing import atomic_directory, find_checkpoints
from ..training.estimation import CorpusSize, RunEstimate, estimate_run
from ..training.loop import build_accelerator, train
from .models import environment, locate_model
from .pretraining import PretrainingRecipe
from .recipe import Recipe, Texts, check_goes_on, read_recipe, write_recipe

# For what the main process does alone, training a tokenizer above all: the others wait for it in a
# collective operation, which by default gives up after ten minutes.
_PATIENCE = timedelta(hours=12)


def execute(
    recipe: Recipe,
    output: Path,
    *,
    tokenizer: str | Path | None = None,
    num_proc: int | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Runs `recipe` from text to test scores.

    With several processes (`torchrun`, `accelerate launch`) each of them calls it. The main process
    trains the tokenizer and writes the files; `output` must be the same directory for all of them.

    Args:
        recipe: What to run; with `resume` the run's own, but for what `check_goes_on` lets pass.
        output: The run's directory; see `train` for what it holds. `recipe.json` and
            `results.json` are written beside that.
        tokenizer: Directory of a tokenizer to use instead of training one.
        num_proc: Processes to tokenise with.
        resume: Go on with the run in `output`. One that was interrupted while it was scored is
            averaged and scored again.

    Returns:
        The content of `results.json`.

    Raises:
        ValueError: Data or settings that cannot be used; see `load_parallel` and `train`.
    """
    started = time.time()
    beginnings = {
        "resume": resume,
        "initial_model": recipe.initial_model and not resume,
        "tokenizer": tokenizer,
    }
    given = [name for name, value in beginnings.items() if value]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} exclude each other: each brings a tokenizer")
    has_run = bool(find_checkpoints(output))
    if has_run and not resume:
        raise ValueError(
            f"{output} already holds a run; resume it (--resume) or choose another directory"
        )
    if resume and not has_run:
        raise ValueError(f"{output} holds no run to resume; leave --resume out to begin one")
    if resume:
        check_goes_on(read_recipe(output / "recipe.json"), recipe)
    elif recipe.initial_model is not None:
        recipe = dataclasses.replace(recipe, initial_model=locate_model(recipe.initial_model))

    PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=_PATIENCE)
    accelerator = build_accelerator(recipe.training)
    # The first process of a machine fills its cache, from which the others read.
    with accelerator.local_main_process_first():
        texts = recipe.read()
    set_seed(recipe.training.seed)
    if accelerator.is_main_process:
        if not resume:
            write_tokenizer(recipe, output / "tokenizer", texts, tokenizer)
        write_recipe(recipe, output / "recipe.json")
    accelerator.wait_for_everyone()
    vocabulary = load_tokenizer(output / "tokenizer")
    with accelerator.local_main_process_first():
        examples, encoding = recipe.encode(
            texts.train, vocabulary, recipe.config(vocabulary), num_proc
        )
    model, initialised = recipe.build_model(vocabulary)
    if accelerator.is_main_process and recipe.initial_model is not None:
        for what, names in initialised.items():
            print(f"{what.replace('_', ' ')}: {', '.join(names) or 'nothing'}", flush=True)
    task = recipe.build_task(texts, vocabulary, model.config)
    run = train
    if recipe.driver == "trainer":
        from ..training.trainer import train_with_trainer

        run = train_with_trainer
    result = run(model, vocabulary, task, examples, output, recipe.training, resume=resume)
    # Scored is what was saved, whole on every process however it was sharded in training.
    del model, task
    accelerator = build_accelerator(recipe.training)
    final = recipe.model_class.from_pretrained(output / "model").eval().to(accelerator.device)
    fitted = recipe.fit(final, vocabulary, texts, accelerator)
    if fitted:
        final.config.update(fitted)
        if accelerator.is_main_process:
            with atomic_file(output / "model" / "config.json") as path:
                final.config.to_json_file(path)
    results = {
        "recipe": recipe.name,
        "task": recipe.task,
        "parameters": final.num_parameters(),
        "vocabulary": len(vocabulary),
        "initialised": initialised,
        "training": dataclasses.asdict(result),
        "data": dataclasses.asdict(texts.report) | {"encoding": dataclasses.asdict(encoding)},
        "fitted": fitted,
        "tests": recipe.score(final, vocabulary, texts, accelerator),
        "total_seconds": time.time() - started,
        "environment": environment()
        | {"processes": accelerator.num_processes, "precision": recipe.training.precision},
    }
    if accelerator.is_main_process:
        with atomic_file(output / "results.json") as path:
            path.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", "utf-8")
    accelerator.wait_for_everyone()
    return results


def write_tokenizer(
    recipe: Recipe,
    folder: Path,
    texts: Texts,
    given: str | Path | None = None,
) -> None:
    """Saves the tokenizer of a new run: that of its initial model, the one given or a new one.

    Raises:
        ValueError: It cannot be loaded or trained, or is not that of the initial model.
    """
    source = recipe.initial_model or given
    if source is None:
        tokenizer = train_tokenizer(
            recipe.all_text(texts.train),
            recipe.vocab_size,
            lowercase=recipe.lowercase,
            strip_punctuation=recipe.strip_punctuation,
        )
    else:
        tokenizer = load_tokenizer(source)
    # What does not fit should leave no run behind.
    recipe.config(tokenizer)
    with atomic_directory(folder) as directory:
        tokenizer.save_pretrained(directory)


def estimate(
    recipe: Recipe,
    *,
    tokenizer: str | Path | None = None,
    processes: int = 1,
    is_sharded: bool = False,
) -> tuple[RunEstimate, CorpusSize | None]:
    """What a run of `recipe` will cost, and how much text it has; nothing is downloaded or trained.

    Args:
        recipe: What would be run.
        tokenizer: Directory of the tokenizer that would be used, to count tokens instead of
            estimating them.
        processes: How many would share an update.
        is_sharded: Parameters, gradients and optimizer would be shared out too (FSDP2).

    Raises:
        ValueError: The corpus or the initial model that is named is not there.
    """
    if recipe.initial_model is not None:
        if not Path(recipe.initial_model).expanduser().is_dir():
            raise ValueError(
                f"{recipe.initial_model} is not on this machine, and an estimate downloads "
                "nothing; give the directory of a model"
            )
        recipe = dataclasses.replace(recipe, initial_model=locate_model(recipe.initial_model))
        tokenizer = tokenizer or recipe.initial_model
    if tokenizer is None:
        vocabulary = None
        config = VanillaTransformerConfig(
            vocab_size=recipe.vocab_size, **recipe.architecture, **recipe.task_options()
        )
    else:
        vocabulary = load_tokenizer(tokenizer)
        config = recipe.config(vocabulary)
    corpus = recipe.measure(vocabulary)
    costs = estimate_run(
        config,
        recipe.training,
        model_class=recipe.model_class,
        # Other heads have no use for it.
        masked_share=recipe.masked_share if isinstance(recipe, PretrainingRecipe) else 0.0,
        corpus=corpus,
        processes=processes,
        is_sharded=is_sharded,
        on_gpu=torch.cuda.is_available(),
    )
    return costs, corpus
