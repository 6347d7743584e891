"""Commands, settings and code on pages are those of the package."""

import ast
import importlib.util
import itertools
import re
import shlex
import typing
from pathlib import Path

import pytest
from doc_pages import PAGES, ROOT, blocks, code, commands, name

from vampo_core.cli import parser
from vampo_core.config import ConfigError, VampoConfig, load_config, presets, roles
from vampo_core.config.checks import convert
from vampo_core.config.yaml_text import parse

SECTIONS = typing.get_type_hints(VampoConfig)
SETTING = re.compile(r"([a-z_]+)\.(\w+)( ?= ?(.*))?")
FILES = ("json", "safetensors", "py", "md", "yaml")
SHELL = (">", ">>", "|", "&", "&&", "||", ";")
UNWRITTEN = re.compile(r"…|\.\.\.|FOLDER|FILE|VERB|\[k\]")
"""What stands for something else on a page."""
pages = pytest.mark.parametrize("page", PAGES, ids=name)


def arguments(command: str) -> list[str] | None:
    """What follows ``vampo``, or ``-m vampo_core``, up to what the shell does with it; None for another command."""
    match = re.search(r"(?:^|\s)(?:vampo|-m vampo_core)\s+(.*)", command)
    if match is None:
        return None
    return list(itertools.takewhile(lambda word: word not in SHELL, shlex.split(match[1].removesuffix("'"))))


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty folder to work in, with the environment variables of the pages; no verb does its work."""
    monkeypatch.chdir(tmp_path)
    for variable in ("DATASETS", "VAMPO_REAL_DATA"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setattr(parser, "_handler", lambda verb: lambda config, **options: 0)
    return tmp_path


def configurations(page: Path) -> list[str]:
    """Blocks of YAML with a section of the configuration."""
    return [block for block in blocks(page, "yaml") if SECTIONS.keys() & parse(block, str(page)).keys()]


def run(given: list[str], folder: Path, settings: str = "") -> int:
    """Parse a command as the command line does; a configuration that the page does not show is made."""
    config = given[given.index("--config") + 1] if "--config" in given else None
    if config is not None and config not in presets():
        assert not Path(config).is_absolute(), "a page's own files have relative paths"
        path = folder / config if config.endswith(".yaml") else folder / config / "config.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(settings)
    return parser.main(given)


@pages
def test_commands_parse(page, elsewhere, capsys):
    settings = next(iter(configurations(page)), "")
    for command in commands(page):
        if (given := arguments(command)) is not None:
            assert run(given, elsewhere, settings) == 0, f"{command}\n{capsys.readouterr().err}"
            assert "does not read" not in capsys.readouterr().err, command


@pages
def test_commands_in_the_text_have_verbs_options_and_settings(page):
    for piece in code(page):
        if (given := arguments(piece)) is None or UNWRITTEN.fullmatch(given[0]):
            continue
        verb = next((v for v in (" ".join(given[:2]), given[0]) if v in parser.VERBS), None)
        assert verb is not None, piece
        known = {f"--{option.name.strip('_').replace('_', '-')}" for option in parser.VERBS[verb].options}
        for word in given:
            assert not word.startswith("--") or word in known | {"--config", "--debug", "--help"}, piece
            assert "=" not in word or word.partition("=")[0] in roles(), piece


@pages
def test_settings_in_the_text_exist(page):
    for piece in code(page):
        if problem := wrong(piece):
            pytest.fail(f"{piece}: {problem}")


def wrong(piece: str) -> str | None:
    """What is wrong with a setting, such as ``grpo.num_generations=8``; None for anything else."""
    match = SETTING.fullmatch(piece)
    if match is None or match[1] not in SECTIONS or match[2] in FILES:
        return None
    key, value = f"{match[1]}.{match[2]}", match[4]
    if key not in roles():
        return "no such setting"
    if value and not UNWRITTEN.search(value):
        hints = typing.get_type_hints(SECTIONS[match[1]], include_extras=True)
        try:
            if "Literal" in str(hints[match[2]]) or not isinstance(parse(value, piece), str):
                convert(parse(value, piece), hints[match[2]], key)
        except ConfigError as error:
            return str(error)
    return None


@pages
def test_configurations_load(page, elsewhere):
    for block in configurations(page):
        (elsewhere / "config.yaml").write_text(block)
        load_config(elsewhere / "config.yaml")


@pages
def test_python_compiles_and_imports_what_exists(page):
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("vampo_core"):
                for alias in node.names:
                    assert exists(str(node.module), alias.name), f"{node.module} has no {alias.name}"
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "vampo_core":
                assert exists("vampo_core", node.attr), f"vampo_core has no {node.attr}"


def exists(module: str, attribute: str) -> bool:
    """Whether a module has a name, or a module of that name in it."""
    is_there = hasattr(importlib.import_module(module), attribute)
    return is_there or importlib.util.find_spec(f"{module}.{attribute}") is not None


@pages
def test_targets_and_scripts_exist(page):
    text = "\n".join([*code(page), *commands(page)])
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make ([\w-]+)", text, re.MULTILINE)) <= targets
    scripts = re.findall(r"python (benchmarks/\w+\.py)", text)
    assert [script for script in scripts if not (ROOT / script).is_file()] == []


@pytest.mark.parametrize(
    ("piece", "problem"),
    [
        ("grpo.num_generation", "no such setting"),
        ("grpo.credit=path", "grpo.credit is 'path', expected one of frame, clip, pathwise"),
        ("grpo.num_generations=1", "grpo.num_generations is 1, expected an integer at least 2"),
        ("grpo.num_generations=8", None),
        ("data.root=/data/bridge", None),
        ("policy.json", None),
    ],
)
def test_wrong_settings_are_noticed(piece, problem):
    assert (wrong(piece) is None) == (problem is None) and (problem or "") in (wrong(piece) or "")
