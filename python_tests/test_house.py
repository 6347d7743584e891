"""The layout of the package: imports only point down, without cycles, and files stay short."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "vampo_core"

FLOORS = (
    ("vampo_core", "__main__"),
    ("cli",),
    ("api", "rewards"),
    ("pipeline",),
    ("report", "grpo", "policy"),
    ("training",),
    ("evaluation",),
    ("models", "data", "config"),
    ("diffusion",),
    ("ops", "envs"),
    ("files", "progress", "_extension"),
)
"""Rooms from the top down. A module may import from its own room and from those on lower floors; classes of higher
rooms are reached by a dotted name in a registry."""
LEVEL = {room: len(FLOORS) - number for number, rooms in enumerate(FLOORS) for room in rooms}


@cache
def modules() -> dict[str, Path]:
    """Files by module name."""
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sorted(PACKAGE.rglob("*.py"))}
    return {name.removesuffix(".__init__"): path for path, name in names.items()}


@cache
def imports() -> dict[str, set[str]]:
    """What each module imports of the package, anywhere in it: in functions and under TYPE_CHECKING too."""
    return {name: set(_imported(name, path)) for name, path in modules().items()}


def _imported(name: str, path: Path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules())
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            for alias in node.names:
                found = f"{node.module}.{alias.name}"
                if found == "vampo_core._C":  # the compiled operators
                    continue
                if found in modules() or node.module in modules():
                    yield found if found in modules() else str(node.module)


def room(module: str) -> str:
    """The folder or file directly in the package that a module belongs to."""
    return module.split(".")[1] if "." in module else module


def test_no_import_cycle():
    below = {name: _reachable(name) for name in modules()}
    cycles = {frozenset(other for other in below[name] if name in below[other]) for name in modules()} - {frozenset()}
    assert not [sorted(cycle) for cycle in cycles]


def _reachable(name: str) -> set[str]:
    found: set[str] = set()
    to_do = [name]
    while to_do:
        new = imports()[to_do.pop()] - found
        found |= new
        to_do += new
    return found


def test_imports_point_down():
    assert {room(name) for name in modules()} == LEVEL.keys(), "every room has its floor"
    wrong = [
        f"{name} imports {target}"
        for name, targets in imports().items()
        for target in sorted(targets)
        if room(name) != room(target) and LEVEL[room(target)] >= LEVEL[room(name)]
    ]
    assert not wrong


def test_files_stay_short():
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for folder in ("vampo_core", "python_tests", "benchmarks", "csrc")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".h", ".cpp", ".cu", ".cuh", ".html", ".j2")
    }
    assert len(lengths) > 150
    assert not {name: length for name, length in lengths.items() if length > 400}


def test_the_training_loop_is_read_in_one_go():
    loop = PACKAGE / "training" / "loop.py"
    assert len(loop.read_text(encoding="utf-8").splitlines()) <= 250


def test_few_modules_stand_outside_of_rooms():
    standing = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__", "_extension"}
    assert len(standing) <= 4, sorted(standing)


@pytest.mark.parametrize("call", ["train", "pretrain", "evaluate", "train_policy", "evaluate_policy", "run_chain",
                                  "sample", "write_report", "compare_runs"])  # fmt: skip
def test_a_public_call_reads_like_a_story(call):
    tree = ast.parse((PACKAGE / "api.py").read_text(encoding="utf-8"))
    (function,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == call]
    body = function.body[1:]  # after the docstring
    assert body[-1].end_lineno - body[0].lineno < 25
