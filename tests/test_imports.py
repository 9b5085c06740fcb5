"""The import rule: imports run downward only, and importing the package stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_imports, get_relative_imports

PACKAGE = "vanilla_transformer"
REPOSITORY = Path(__file__).resolve().parent.parent

# From the ground up. The rooms of one line do not import each other; within a room is free.
LADDER: list[set[str]] = [
    {"configuration_vanilla_transformer", "pipeline_vanilla_transformer", "atomic_file"},
    {"modeling_vanilla_transformer"},
    {"registration", "tokenization"},
    {"data", "generation", "conversion"},
    {"tasks", "evaluation"},
    {"training"},
    {"recipes"},
    {"export", "inspection"},
    {"serving"},
    {"cli"},
    # They open the house from outside: `import …` and `python -m …`.
    {"__init__", "__main__"},
]
LEVEL = {room: level for level, line in enumerate(LADDER) for room in line}

# These files travel to the Hub as custom code, where nothing else of the package is.
TRAVELLING = (
    "configuration_vanilla_transformer",
    "modeling_vanilla_transformer",
    "pipeline_vanilla_transformer",
)
# huggingface_hub is part of transformers' own contract: `@strict` of a configuration lives there.
TRAVELLING_MAY_IMPORT = {"torch", "transformers", "huggingface_hub"} | sys.stdlib_module_names

# What only some verbs need. accelerate itself is not in the list: transformers loads it.
HEAVY = ("datasets", "evaluate", "pandas", "pyarrow", "matplotlib", "tensorboard", "sacrebleu")


def package_files() -> list[Path]:
    """Every Python file of the package, relative to its folder."""
    root = REPOSITORY / PACKAGE
    return sorted(path.relative_to(root) for path in root.rglob("*.py"))


def imported_modules(tree: ast.AST, package: str) -> list[tuple[int, str]]:
    """Line and absolute name of each import; `from a import b` counts as `a.b`.

    Args:
        tree: a parsed module; imports inside functions count like any other.
        package: dotted name of the package the module is in, to resolve relative imports.
    """
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = [node.module] if node.module else []
            if node.level:
                ancestors = package.split(".")
                parts = ancestors[: len(ancestors) - node.level + 1] + parts
            found += [(node.lineno, ".".join([*parts, alias.name])) for alias in node.names]
    return found


def ladder_violations(file: Path, source: str) -> list[str]:
    """What breaks the import rule in one file of the package.

    Args:
        file: path relative to the package's folder, such as `data/corpora.py`.
        source: its text.
    """
    room = file.with_suffix("").parts[0]
    if room not in LEVEL:
        return [f"{file}: room {room!r} has no line in LADDER; give it one, and in CONTRIBUTING.md"]
    tree = ast.parse(source)
    package = ".".join([PACKAGE, *file.parent.parts])
    wrong = [
        f"{file}:{node.lineno}: imports its own package by absolute name; write it relative"
        for node in ast.walk(tree)
        if (isinstance(node, ast.ImportFrom) and not node.level and is_own(node.module or ""))
        or (isinstance(node, ast.Import) and any(is_own(alias.name) for alias in node.names))
    ]
    for line, name in imported_modules(tree, package):
        if not is_own(name):
            continue
        target = name.split(".")[1] if "." in name else "__init__"
        if target == room:
            continue
        if target not in LEVEL:
            wrong.append(f"{file}:{line}: {name} is no room of the ladder; import from its room")
        elif LEVEL[target] == LEVEL[room]:
            wrong.append(f"{file}:{line}: sideways import, {room} -> {target}")
        elif LEVEL[target] > LEVEL[room]:
            wrong.append(f"{file}:{line}: upward import, {room} -> {target}")
    return wrong


def is_own(module: str) -> bool:
    """Whether a dotted name lies in this package."""
    return module.split(".")[0] == PACKAGE


def travelling_violations(path: Path) -> list[str]:
    """What would break a travelling file once it is custom code on the Hub.

    transformers finds the files that a custom module needs by a regular expression over its
    *text*, so a line of a docstring that reads like an import counts there, and `from . import x`
    does not.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    relative: set[str] = set()
    wrong: list[str] = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        if node.level == 1 and node.module in TRAVELLING and node.names[0].name != "*":
            relative.add(node.module)
        else:
            wrong.append(f"{path.name}:{node.lineno}: {ast.unparse(node)}: not in the form allowed")
    # What the scanner sees beyond the real imports stands in a docstring or a comment.
    wrong += [
        f"{path.name}: transformers' scanner reads an import of .{name} that is none"
        for name in sorted(set(get_relative_imports(path)) - relative)
    ]
    wrong += [
        f"{path.name}: transformers' scanner misses the import of .{name}"
        for name in sorted(relative - set(get_relative_imports(path)))
    ]
    # get_imports leaves out what stands in `try`; the rule does not.
    absolute = {name.split(".")[0] for _, name in imported_modules(tree, PACKAGE)} - {PACKAGE}
    absolute |= set(get_imports(path))
    wrong += [
        f"{path.name}: imports {name}; on the Hub only torch and transformers are sure to be there"
        for name in sorted(absolute - TRAVELLING_MAY_IMPORT)
    ]
    return wrong


@pytest.mark.parametrize("file", package_files(), ids=str)
def test_imports_run_downward(file: Path) -> None:
    assert ladder_violations(file, (REPOSITORY / PACKAGE / file).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("name", TRAVELLING)
def test_travelling_files_stand_alone(name: str) -> None:
    assert travelling_violations(REPOSITORY / PACKAGE / f"{name}.py") == []


@pytest.mark.parametrize(
    ("file", "source", "complaint"),
    [
        ("tokenization.py", "from .training.loop import train", "upward"),
        ("tokenization.py", "def f():\n    from .cli import main", "upward"),
        ("tokenization.py", "from .registration import register", "sideways"),
        ("tokenization.py", "from . import registration", "sideways"),
        ("tokenization.py", "from . import VanillaTransformerConfig", "no room"),
        ("tasks/translation.py", "from ..evaluation import load_metric", "sideways"),
        ("tasks/translation.py", "from .. import cli", "upward"),
        ("data/deep/file.py", "from ...tasks import translation", "upward"),
        ("recipes/translation.py", "from ..cli import main", "upward"),
        ("training/task.py", "from ..recipes.recipe import Recipe", "upward"),
        ("training/loop.py", "import vanilla_transformer.data.corpora", "absolute"),
        ("training/loop.py", "from vanilla_transformer.data import corpora", "absolute"),
        ("training/loop.py", "import vanilla_transformer", "upward"),
        ("helpers.py", "", "no line"),
    ],
)
def test_wrong_imports_are_found(file: str, source: str, complaint: str) -> None:
    assert any(complaint in line for line in ladder_violations(Path(file), source))


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("tasks/translation.py", "from ..data.corpora import load_parallel"),
        ("tasks/translation.py", "from .question_answering import encode"),
        ("data/corpora.py", "from . import tiny_world\nfrom ..registration import register"),
        ("recipes/execution.py", "from ..training.loop import train\nfrom .recipe import Recipe"),
        ("cli.py", "import os.path\nfrom .recipes import RECIPES"),
    ],
)
def test_right_imports_pass(file: str, source: str) -> None:
    assert ladder_violations(Path(file), source) == []


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("from . import configuration_vanilla_transformer", "not in the form"),
        ("from .configuration_vanilla_transformer import *", "not in the form"),
        ("from .tokenization import train_tokenizer", "not in the form"),
        ("from ..package.modeling_vanilla_transformer import X", "not in the form"),
        ('"""Use it so:\n\n    from .tasks import translation\n"""', "that is none"),
        ("x = 1; from .configuration_vanilla_transformer import X", "misses"),
        ("import numpy", "imports numpy"),
        ("try:\n    import numpy\nexcept ImportError:\n    pass", "imports numpy"),
        ("import vanilla_transformer", "imports vanilla_transformer"),
    ],
)
def test_wrong_travelling_files_are_found(tmp_path: Path, source: str, complaint: str) -> None:
    path = tmp_path / "modeling_vanilla_transformer.py"
    path.write_text(source, encoding="utf-8")
    assert any(complaint in line for line in travelling_violations(path))


def test_import_of_the_package_is_light() -> None:
    program = f"""
import sys
import transformers.modeling_utils
before = set(sys.modules)
import {PACKAGE}
heavy = {HEAVY!r}
print(*sorted(name for name in sys.modules if name.split(".")[0] in heavy))
# Of accelerate only what transformers has loaded anyway: its launchers stay out.
print(*sorted(name for name in set(sys.modules) - before if name.startswith("accelerate.")))
"""
    run = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    heavy, accelerate = run.stdout.splitlines()
    assert heavy == ""
    assert accelerate == ""
