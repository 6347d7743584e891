"""Pages generated from the code: every setting, every verb of the command line, every public object."""

import functools
import inspect
import re
import types
import typing
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from vampo_core.cli.parser import VERBS
from vampo_core.config import VampoConfig, presets
from vampo_core.config.checks import MultipleOf, Range
from vampo_core.config.meaning import meanings
from vampo_core.config.vampo import roles
from vampo_core.config.yaml_text import parse

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class GeneratedPage:
    """A page in Markdown."""

    title: str
    text: str


API = {
    "calls": ("Calls", "vampo_core", ["train", "pretrain", "evaluate", "sample", "train_policy", "evaluate_policy",
                                      "compare_runs", "run_chain", "write_report", "load_config", "build_info"]),
    "config": ("Configuration", "vampo_core.config", ["VampoConfig", "ConfigError", "presets"]),
    "ops": ("Operators", "vampo_core.ops", None),
    "reference": ("Operators in plain PyTorch", "vampo_core.ops.reference", None),
    "coefficients": ("Coefficients", "vampo_core.ops.coefficients", None),
    "rewards": ("Rewards", "vampo_core.grpo.rewards", None),
    "grpo": ("Post-training", "vampo_core.grpo.trainer", None),
    "loss": ("Loss", "vampo_core.grpo.loss", None),
    "advantages": ("Advantages", "vampo_core.grpo.advantages", None),
    "training": ("Runs", "vampo_core.training.loop", ["TrainResult"]),
    "sampler": ("Sampler", "vampo_core.diffusion", None),
    "scheduler": ("Schedulers for diffusers", "vampo_core.diffusion.scheduler", None),
    "flow_scheduler": ("Scheduler for flows", "vampo_core.diffusion.flow_scheduler", None),
    "solvers": ("Solvers", "vampo_core.diffusion.solvers", None),
    "models": ("Models", "vampo_core.models", None),
    "data": ("Data", "vampo_core.data", None),
    "envs": ("Simulators", "vampo_core.envs", None),
    "gymnasium_env": ("Gymnasium environments", "vampo_core.envs.gymnasium_env", None),
    "policy": ("Policies", "vampo_core.policy.base", None),
    "controller": ("Controller", "vampo_core.policy.controller", None),
    "evaluation": ("Held-out metrics", "vampo_core.evaluation.predictor", None),
    "closed_loop": ("Closed loop", "vampo_core.evaluation.closed_loop", None),
    "episodes": ("Episodes and comparisons", "vampo_core.evaluation.episodes", None),
}  # fmt: skip
"""Pages by file name: title, module, and members in their order; None for everything public."""

API_HEAD = """# API

Generated from the docstrings. The shape of a tensor stands beside it; axes are always in the order B (clips), G
(generations), F (frames), C, H, W.

| page | module |
|---|---|
"""
CONFIGURATION_HEAD = """# Configuration

A configuration is a YAML file of sections, a preset ({presets}) or a run folder. `vampo config --config pusht` prints
every setting with its value and meaning; `section.key=value` on the [command line](cli.md) replaces one.

| section | what it sets |
|---|---|"""
COMMAND_LINE_HEAD = """# Command line

`vampo VERB --config FILE|PRESET [options] [section.key=value ...]`

Every verb takes `--help`, and `--debug` to see the traceback of an error. Exit codes: 0 done, 1 a run failed, 2 bad
usage or configuration, 130 interrupted.
"""


@functools.cache
def api() -> dict[str, GeneratedPage]:
    """A page for each public module."""
    found = {}
    for name, (title, module, members) in API.items():
        options = f"\n    options:\n      members: {members}" if members else ""
        found[f"api/{name}.md"] = GeneratedPage(title, f"# {title}\n\n`{module}`\n\n::: {module}{options}\n")
    lines = [f"| [{title}]({name}.md) | `{module}` |" for name, (title, module, _) in API.items()]
    return {"api/index.md": GeneratedPage("Overview", API_HEAD + "\n".join(lines) + "\n")} | found


@functools.cache
def configuration() -> dict[str, GeneratedPage]:
    """A page for each section of the configuration, one for the presets' values, one for the verbs."""
    sections = typing.get_type_hints(VampoConfig)
    listed = ", ".join(f"`{name}`" for name in presets())
    index = [CONFIGURATION_HEAD.format(presets=listed)]
    index += [f"| [`{name}`]({name}.md) | {_first_line(section)} |" for name, section in sections.items()]
    found = {"configuration/index.md": GeneratedPage("Overview", "\n".join(index) + "\n")}
    found["configuration/cli.md"] = GeneratedPage("Command line", _command_line())
    for name, section in sections.items():
        found[f"configuration/{name}.md"] = GeneratedPage(name, _section(name, section))
    return found


def _section(name: str, section: type) -> str:
    verbs = [f"`vampo {verb}`" for verb, what in VERBS.items() if name in what.reads]
    head, _, rest = inspect.cleandoc(section.__doc__ or "").partition("\n")
    lines = [f"# {name}", "", head, "", _markdown(rest).strip(), "", f"Read by {', '.join(verbs)}.", ""]
    texts, hints = meanings(section), typing.get_type_hints(section, include_extras=True)
    default = getattr(VampoConfig(), name)
    for field in fields(section):
        key = f"{name}.{field.name}"
        facts = [_kind(hints[field.name]), f"default `{_yaml(getattr(default, field.name))}`"]
        values = {preset: _preset(preset).get(name, {}).get(field.name) for preset in presets()}
        other = [f"{preset} `{_yaml(value)}`" for preset, value in values.items() if value is not None]
        facts += [f"presets: {', '.join(other)}"] if other else []
        facts += ["a resumed run may change it"] if roles()[key].may_change else []
        lines += [
            f"## {field.name} {{ #{key} data-toc-label='{field.name}' }}", "",
            " · ".join(facts), "{: .setting-facts }", "", _markdown(texts[field.name]), "",
        ]  # fmt: skip
    return "\n".join(lines)


def _command_line() -> str:
    lines = [COMMAND_LINE_HEAD]
    for name, verb in VERBS.items():
        lines += [f"## vampo {name}", "", f"{verb.help[0].upper()}{verb.help[1:]}.", ""]
        for option in verb.options:
            flag = f"--{option.name.strip('_').replace('_', '-')}" + ("" if option.is_flag else f" {option.metavar}")
            lines.append(f"- `{flag}`: {option.help}{' (required)' if option.required else ''}")
        sections = ", ".join(f"[{section}]({section}.md)" for section in verb.reads)
        lines += ["", f"Reads {sections}." if sections else "Takes no configuration.", ""]
    return "\n".join(lines)


@functools.cache
def _preset(name: str) -> dict[str, dict[str, Any]]:
    """What a preset sets; environment variables in it stay as they are."""
    return parse((REPOSITORY / "configs" / f"{name}.yaml").read_text(encoding="utf-8"), name)


def _first_line(section: type) -> str:
    return inspect.cleandoc(section.__doc__ or "").partition("\n")[0]


def _markdown(text: str) -> str:
    """A docstring's text: Sphinx's roles become plain code."""
    return re.sub(r":\w+:`~?([\w.]+)`", r"`\1`", text)


def _yaml(value: Any) -> str:
    value = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n...\n").strip()


def _kind(annotation: Any) -> str:
    """What a value has to be, in words."""
    if typing.get_origin(annotation) is typing.Annotated:
        inner, *extras = typing.get_args(annotation)
        limits = [str(extra) for extra in extras if isinstance(extra, Range | MultipleOf)]
        return " ".join([_kind(inner), *limits])
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return " or ".join(_kind(argument) for argument in arguments)
    if typing.get_origin(annotation) is typing.Literal:
        return "one of " + ", ".join(f"`{argument}`" for argument in arguments)
    if typing.get_origin(annotation) is tuple:
        return f"a list, each item {_kind(arguments[0])}"
    names = {int: "an integer", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
    return names[annotation]
