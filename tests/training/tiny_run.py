"""Tiny training runs as a program, for the tests that need processes of their own.

    python tiny_run.py JOBS.json
    torchrun --nproc-per-node 2 tiny_run.py JOBS.json

A job is an object of the arguments of `Job`; they are done in turn. What the tests ask about is
written to `RUN/process-RANK.json`. How two runs are compared stands at the end.
"""

import dataclasses
import functools
import json
import logging
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import torch
from accelerate import Accelerator, PartialState
from datasets import Dataset
from transformers import AutoModelForSeq2SeqLM, PreTrainedTokenizerBase, set_seed

from vanilla_transformer import (
    VanillaTransformerConfig,
    VanillaTransformerForConditionalGeneration,
)
from vanilla_transformer.data.tiny_world import generate_translation
from vanilla_transformer.generation import DecodingSettings
from vanilla_transformer.tasks.translation import encode_pairs
from vanilla_transformer.tokenization import train_tokenizer
from vanilla_transformer.training.checkpointing import find_checkpoints, latest_checkpoint
from vanilla_transformer.training.loop import train
from vanilla_transformer.training.settings import TrainingSettings
from vanilla_transformer.training.translation import TranslationTask, translate_texts
from vanilla_transformer.training.validation import whole_model

SETTINGS = TrainingSettings(
    updates=20,
    warmup=8,
    learning_rate_factor=0.5,
    max_source_tokens=256,
    max_target_tokens=256,
    max_gradient_norm=1.0,
    validate_every=1000,
    validation_examples=3,
    checkpoint_every=1000,
    average_last=2,
    log_every=1,
    trackers=(),
)
# Short outputs: an untrained model seldom ends a sentence, and validation would take the time.
DECODING = DecodingSettings(num_beams=2, max_tokens_over_source=2)


@dataclass
class Job:
    """A run, and what is done to it on the way.

    Attributes:
        run_dir: Of the run.
        settings: What differs from `SETTINGS`.
        dropout: Of the model.
        pairs: How many of the 100 pairs to train on; the first of them that often if `repeat`.
        repeat: Whether to train on copies of one pair.
        resume: Go on with the run; None if it has a checkpoint.
        at: In which forward pass of training, counted from 1, something is done.
        what: "raise" an error, make the loss "nan", or send "SIGINT" or "SIGTERM".
        on: The processes that this happens to; all if None.
        to_launcher: Whether the signal goes to torchrun.
        validate: Instead of training, validate the model in this directory.
    """

    run_dir: str
    settings: dict[str, Any] = field(default_factory=dict)
    dropout: float = 0.0
    pairs: int = 100
    repeat: bool = False
    resume: bool | None = False
    at: int = 0
    what: str = ""
    on: list[int] | None = None
    to_launcher: bool = False
    validate: str = ""


class World(NamedTuple):
    """Data to train on.

    Attributes:
        tokenizer: Of 300 tokens.
        text: 100 pairs.
        pairs: The same encoded.
        validation: 7 other pairs, as text.
    """

    tokenizer: PreTrainedTokenizerBase
    text: Dataset
    pairs: Dataset
    validation: Dataset

    def task(self, **options: Any) -> TranslationTask:
        """What to learn from them; `DECODING` unless another is given."""
        return TranslationTask(self.tokenizer, self.validation, **{"decoding": DECODING, **options})


@functools.cache
def make_world() -> World:
    datasets.disable_progress_bars()
    text = Dataset.from_list(list(generate_translation("train", 100)))
    tokenizer = train_tokenizer((side for pair in text for side in pair.values()), 300)
    validation = Dataset.from_list(list(generate_translation("validation", 7)))
    return World(tokenizer, text, encode_pairs(text, tokenizer)[0], validation)


def make_model(
    dropout: float = 0.0, **architecture: Any
) -> VanillaTransformerForConditionalGeneration:
    """The same weights whenever it is called."""
    set_seed(7)
    dimensions = {"d_model": 16, "d_ff": 32, "num_heads": 2}
    layers = {"num_encoder_layers": 1, "num_decoder_layers": 1}
    return VanillaTransformerForConditionalGeneration(
        VanillaTransformerConfig(
            vocab_size=len(make_world().tokenizer),
            dropout=dropout,
            **{**dimensions, **layers, **architecture},
        )
    )


class ToldToFailError(Exception):
    """What a job asked for."""


class Witness:
    """Sees every forward pass of training, writes down its loss, and does what the job says."""

    def __init__(self, job: Job, rank: int):
        self.job, self.rank = job, rank
        self.losses: list[float] = []

    def __call__(self, model: torch.nn.Module, inputs: Any, output: Any) -> None:
        if not model.training:
            return
        job = self.job
        self.losses.append(float(output.loss.detach()))
        if len(self.losses) != job.at or (job.on is not None and self.rank not in job.on):
            return
        if job.what == "raise":
            raise ToldToFailError(f"process {self.rank} was told to fail")
        if job.what == "nan":
            output.loss = output.loss * float("nan")
        else:
            os.kill(os.getppid() if job.to_launcher else os.getpid(), signal.Signals[job.what])
            # A launcher takes its time to pass it on; nobody may be past the end by then.
            time.sleep(1.0 if job.to_launcher else 0.0)


def run_job(job: Job, rank: int) -> dict[str, Any]:
    """Does a job; what is to be known of it."""
    world = make_world()
    settings = dataclasses.replace(SETTINGS, **job.settings)
    if job.validate:
        return validate(Path(job.validate), settings)
    run_dir = Path(job.run_dir)
    witness = Witness(job, rank)
    model = make_model(job.dropout)
    if job.resume:
        # What was saved must come back from the checkpoint.
        torch.manual_seed(rank)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1.0)
    model.register_forward_hook(witness)
    (run_dir / f"pid-{rank}").write_text(str(os.getpid()), "utf-8")
    resume = job.resume if job.resume is not None else latest_checkpoint(run_dir) is not None
    result = train(
        model,
        world.tokenizer,
        world.task(),
        world.pairs.select([0] * job.pairs if job.repeat else range(job.pairs)),
        run_dir,
        settings,
        resume=resume,
    )
    return {"updates": result.updates, "validation": result.validation, "losses": witness.losses}


def validate(path: Path, settings: TrainingSettings) -> dict[str, Any]:
    """Validation and bare translations of 7, 3, 1 and no sentence."""
    world = make_world()
    accelerator = Accelerator()
    prepared = accelerator.prepare(AutoModelForSeq2SeqLM.from_pretrained(path))
    found = world.task().validate(accelerator, prepared, settings)
    translations = []
    with whole_model(accelerator, prepared) as inner:
        for count in (7, 3, 1, 0):
            sources = list(world.validation["source"][:count])
            hypotheses = translate_texts(accelerator, inner, world.tokenizer, sources, DECODING)
            translations.append([[found.text for found in several] for several in hypotheses])
    return {**dataclasses.asdict(found), "translations": translations}


def main(jobs: list[dict[str, Any]]) -> None:
    """Does the jobs in turn."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    rank = int(os.environ.get("RANK", "0"))
    for arguments in jobs:
        job = Job(**arguments)
        path = Path(job.run_dir) / f"process-{rank}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        report: dict[str, Any] = {}
        try:
            report = run_job(job, rank)
        except (FloatingPointError, KeyboardInterrupt, ToldToFailError) as error:
            report = {"error": type(error).__name__, "message": str(error)}
            if job.to_launcher or (job.what == "raise" and job.on is not None):
                raise
        finally:
            path.write_text(json.dumps(report), "utf-8")
    # Threads of a process group that is left open may end a finished process in disorder.
    PartialState().destroy_process_group()


# ------------------------------------------------------------------------------ what is left of it


def read_log(run_dir: Path) -> list[dict[str, Any]]:
    """The log of a run, the times left out."""
    lines = (run_dir / "training_log.jsonl").read_text("utf-8").splitlines()
    return [without_times(json.loads(line)) for line in lines]


def without_times(value: Any) -> Any:
    """A JSON value without the figures that differ from run to run."""
    if isinstance(value, dict):
        return {
            name: without_times(part)
            for name, part in value.items()
            if name not in ("seconds", "items_per_second")
        }
    return [without_times(part) for part in value] if isinstance(value, list) else value


def assert_same_run(found: Path, expected: Path) -> None:
    """Bit for bit: the log, the models, and all that the last checkpoint holds."""
    assert read_log(found) == read_log(expected)
    folders = ["model", "best", f"checkpoints/{find_checkpoints(expected)[-1].name}"]
    for folder in folders:
        files = {path.name for path in (expected / folder).iterdir()}
        assert {path.name for path in (found / folder).iterdir()} == files, folder
        # The manifest holds the hash of the times.
        for name in files - {"manifest.json"}:
            one, other = ((run / folder / name).read_bytes() for run in (found, expected))
            if name == "training_state.json":
                assert without_times(json.loads(one)) == without_times(json.loads(other))
            else:
                assert one == other, f"{folder}/{name}"


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text("utf-8")))
