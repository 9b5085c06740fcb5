"""Accelerate's configuration files: the launch lines at their heads do what the files promise."""

import os
import shlex
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env
from torch.distributed.fsdp import StateDictType
from torch.distributed.run import get_args_parser

from vanilla_transformer import (
    VanillaTransformerConfig,
    VanillaTransformerForConditionalGeneration,
)
from vanilla_transformer.modeling_vanilla_transformer import (
    VanillaTransformerDecoderLayer,
    VanillaTransformerEncoderLayer,
)

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIGS = REPOSITORY / "scripts" / "accelerate"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
TYPES = {
    "one_gpu": DistributedType.NO,
    "many_gpus": DistributedType.MULTI_GPU,
    "many_nodes": DistributedType.MULTI_GPU,
    "fsdp2": DistributedType.FSDP,
    "two_cpu_processes": DistributedType.MULTI_GPU,
}
# Machines, and processes of all of them, that the launch lines ask for.
SIZES = {
    "one_gpu": (1, 1),
    "many_gpus": (1, 8),
    "many_nodes": (2, 16),
    "fsdp2": (1, 8),
    "two_cpu_processes": (1, 2),
}
TRAIN = ["train", "RECIPE", "--output", "RUN"]


def launch_line(name: str, program: str) -> tuple[dict[str, str], list[str]]:
    """Variables and arguments of the line at the head of a file that calls `program`."""
    head = []
    for line in (CONFIGS / f"{name}.yaml").read_text("utf-8").splitlines():
        if not line.startswith("#"):
            break
        head.append(line.removeprefix("#").strip())
    text = "\n".join(head).replace("\\\n", " ").replace("The same: ", "")
    for line in text.splitlines():
        words = shlex.split(line) if program in line else []
        variables = {}
        while words and "=" in words[0]:
            key, value = words.pop(0).split("=")
            variables[key] = value
        if words and words[0] == program:
            return variables, words[1:]
    raise AssertionError(f"{name}.yaml has no line for {program}")


def parse(name: str, *without: str) -> Namespace:
    """What `accelerate launch` makes of the launch line, the file read, some options left out."""
    _, words = launch_line(name, "accelerate")
    assert words.pop(0) == "launch"
    for option in without:
        place = words.index(option)
        del words[place : place + 2]
    place = words.index("--config_file") + 1
    assert words[place] == f"scripts/accelerate/{name}.yaml"
    words[place] = str(REPOSITORY / words[place])
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    return args


def test_every_file_is_known_here() -> None:
    assert set(NAMES) == TYPES.keys()


@pytest.mark.parametrize("name", NAMES)
def test_a_file_gives_the_type_it_claims_and_leaves_precision_to_the_recipe(name: str) -> None:
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert config.distributed_type == TYPES[name]
    assert config.mixed_precision is None
    assert not config.dynamo_config


@pytest.mark.parametrize("name", NAMES)
def test_the_launch_line_starts_the_processes_it_names(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = parse(name)
    machines, processes = SIZES[name]
    assert (args.num_machines, args.num_processes) == (machines, processes)
    assert args.module
    assert [args.training_script, *args.training_script_args] == ["vanilla_transformer", *TRAIN]
    assert not args.cpu
    assert args.use_fsdp == (name == "fsdp2")
    assert args.multi_gpu == (processes > 1 and name != "fsdp2")
    if processes == 1:
        command, environment = prepare_simple_launcher_cmd_env(args)
        assert command[1:] == ["-m", "vanilla_transformer", *TRAIN]
    else:
        # The test machine's network is not asked whether the port is free.
        monkeypatch.setattr("accelerate.utils.launch.is_port_in_use", lambda port: False)
        environment = prepare_multi_gpu_env(args)
        assert args.nproc_per_node == str(processes // machines)
    assert environment["ACCELERATE_MIXED_PRECISION"] == "no"
    assert environment["ACCELERATE_DYNAMO_BACKEND"] == "NO"
    if name == "many_nodes":
        assert (args.nnodes, args.node_rank) == ("2", 0)
        assert args.rdzv_endpoint == "10.0.0.1:29500"
    elif processes > 1:
        # Any free one.
        assert args.master_port not in ("0", "29500")


@pytest.mark.parametrize("name", ["many_gpus", "many_nodes", "fsdp2"])
def test_the_number_of_gpus_is_asked_for(name: str) -> None:
    with pytest.raises(ValueError, match="--num_processes"):
        parse(name, "--num_processes")


@pytest.mark.parametrize("name", [name for name in NAMES if SIZES[name][1] > 1])
def test_the_torchrun_line_starts_as_many(name: str) -> None:
    _, words = launch_line(name, "torchrun")
    args = get_args_parser().parse_args(words)
    machines, processes = SIZES[name]
    assert int(args.nproc_per_node) == processes // machines
    assert args.module
    assert [args.training_script, *args.training_script_args] == ["vanilla_transformer", *TRAIN]
    if machines > 1:
        assert (int(args.nnodes), args.node_rank) == (machines, 0)
        assert (args.master_addr, args.master_port) == ("10.0.0.1", 29500)
    else:
        assert args.standalone


@pytest.mark.parametrize("program", ["accelerate", "torchrun"])
def test_fsdp2_shards_by_layer_and_keeps_its_shards(
    program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plugin that every process makes of what the launcher hands it."""
    if program == "accelerate":
        environment = prepare_multi_gpu_env(parse("fsdp2"))
    else:
        environment, _ = launch_line("fsdp2", "torchrun")
    for key, value in environment.items():
        if key.startswith(("FSDP_", "ACCELERATE_")):
            monkeypatch.setenv(key, value)
    assert environment["ACCELERATE_USE_FSDP"] == "true"
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.state_dict_type == StateDictType.SHARDED_STATE_DICT
    assert not plugin.cpu_ram_efficient_loading
    assert not plugin.activation_checkpointing
    config = VanillaTransformerConfig(vocab_size=8, d_model=4, d_ff=4, num_heads=1)
    plugin.set_auto_wrap_policy(VanillaTransformerForConditionalGeneration(config))
    assert plugin.auto_wrap_policy.keywords == {
        "transformer_layer_cls": {VanillaTransformerEncoderLayer, VanillaTransformerDecoderLayer}
    }


@pytest.mark.timeout(120)
@pytest.mark.parametrize("is_set", [True, False])
def test_two_processes_on_the_processor_know_each_other_by_the_variable_alone(
    tmp_path: Path, is_set: bool
) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import os, accelerate\n"
        "state = accelerate.Accelerator()\n"
        "found = (state.distributed_type.value, state.process_index, state.num_processes)\n"
        "os.write(1, f'{found}\\n'.encode())\n"
    )
    variables, words = launch_line("two_cpu_processes", "accelerate")
    assert variables == {"ACCELERATE_USE_CPU": "true"}
    words[words.index("-m") :] = [str(program)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    environment.pop("ACCELERATE_USE_CPU", None)
    run = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.accelerate_cli", *words],
        env=environment | (variables if is_set else {}),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    together = ["('MULTI_CPU', 0, 2)", "('MULTI_CPU', 1, 2)"]
    alone = ["('NO', 0, 1)"] * 2
    assert sorted(run.stdout.split("\n"))[1:] == (together if is_set else alone)
