"""``vampo <verb> --config FILE|PRESET key=value …``.

Exit codes: 0 done, 1 a run failed, 2 bad usage or configuration, 130 interrupted.
"""

import argparse
import importlib
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError

from vampo_core._extension import version
from vampo_core.config import ConfigError, load_config, presets
from vampo_core.data.episode import EpisodeError
from vampo_core.envs import SimulatorError
from vampo_core.training.checkpoint import CheckpointError

EXPECTED_ERRORS = (
    *(ValueError, OSError, ImportError, ArithmeticError, CheckpointError, EpisodeError),
    *(SimulatorError, torch.OutOfMemoryError, SafetensorError),
)
"""Errors from wrong data, a full disk or device, a killed worker or a diverged run: reported in one line. Any other
error is a bug and keeps its traceback."""


@dataclass(frozen=True)
class Option:
    """An option of a verb: ``num_samples`` is ``--num-samples``, and a keyword argument of the verb's handler.

    A name that Python reserves has an underscore at its end: ``continue_`` is ``--continue``.
    """

    name: str
    help: str
    required: bool = False
    type: Callable[[str], Any] = str
    default: Any = None
    metavar: str = "FOLDER"
    is_flag: bool = False


@dataclass(frozen=True)
class Verb:
    """A subcommand.

    ``handler`` is ``"module:function"``, called as ``function(config, **options)``. The module is imported when the
    configuration has been read. The function returns an exit code, or None for success. ``reads`` names the sections of
    the configuration that it reads. A verb with ``takes`` has no configuration: it is called as
    ``function(words, **options)``, with its positional arguments. One that ``examines`` is called as
    ``function(name, overrides=…, **options)``, with the name of a configuration or None, before anything is read.
    """

    handler: str
    help: str
    reads: tuple[str, ...]
    options: tuple[Option, ...] = ()
    takes: Option | None = None
    """Its positional arguments, of which it needs at least one, where they take the place of a configuration."""
    examines: bool = False
    """Whether it examines a configuration that may be wrong, or none at all."""


_CLIPS = ("data", "model", "run")
_SAMPLED = (*_CLIPS, "sampler", "evaluation")
_MEASURED = (*_SAMPLED, "decoder")
_PREDICTOR = (*_MEASURED, "pretrain")
_POLICY = (*_PREDICTOR, "policy")
_VAMPO = (*_POLICY, "grpo", "reward", "optim")
_ALL = (*_VAMPO, "closed_loop", "chain")


_CHECKPOINT = Option("checkpoint", "run folder, checkpoint or model folder", required=True)
_TRAINING = (
    Option(
        "continue_",
        "continue the run in run.dir where it was stopped; begin it if there is none, and do nothing if it is complete",
        is_flag=True,
    ),
    Option("resume_from", "run folder or checkpoint to continue from; later checkpoints are deleted"),
)
_GROUPS = {"policy": "train the robot policy, or try it in a simulator"}
"""First words of verbs that have two words."""
VERBS = {
    "record": Verb("vampo_core.cli.commands:record", "record expert episodes in a simulator", ("data", "run")),
    "export": Verb(
        "vampo_core.cli.commands:export",
        "write the episodes of a dataset in another format",
        ("data", "run"),
        (
            Option("to", "format to write: lerobot, LeRobotDataset v3.0", required=True, metavar="FORMAT"),
            Option("output", "folder to make", required=True),
            Option(
                "encoding",
                "lossless (default), or av1: a third of the size, shown by browsers, as lerobot does it",
                default="lossless",
                metavar="NAME",
            ),
            Option("failures", "keep recorded episodes that were no success", is_flag=True),
        ),
    ),
    "encode": Verb("vampo_core.cli.commands:encode", "encode the videos of a dataset as latents", _CLIPS),
    "pretrain": Verb(
        "vampo_core.cli.commands:pretrain",
        "train a base video predictor on expert videos",
        (*_PREDICTOR, "reward"),
        _TRAINING,
    ),
    "plan": Verb(
        "vampo_core.cli.commands:plan", "say how much memory a post-training will take, without loading weights", _VAMPO
    ),
    "train": Verb("vampo_core.cli.commands:train", "post-train a video predictor with VAMPO", _VAMPO, _TRAINING),
    "policy train": Verb(
        "vampo_core.cli.commands:train_policy",
        "train a policy on the features of a video predictor",
        _POLICY,
        _TRAINING,
    ),
    "policy eval": Verb(
        "vampo_core.cli.commands:evaluate_policy",
        "let a policy act in a simulator and measure its success",
        (*_CLIPS, "closed_loop"),
        (
            Option("checkpoint", "run folder, checkpoint or policy folder (default: the simulator's own expert acts)"),
            Option("against", "another policy, which acts in the same episodes and is compared with the first"),
            Option("output", "folder for episodes and videos (default: <run.dir>/closed_loop)"),
        ),
    ),
    "evaluate": Verb(
        "vampo_core.cli.commands:evaluate",
        "measure a video predictor on held-out clips",
        _MEASURED,
        (
            _CHECKPOINT,
            Option("against", "another predictor, which predicts the same clips and is compared with the first"),
            Option("output", "JSON file for the results", metavar="FILE"),
        ),
    ),
    "sample": Verb(
        "vampo_core.cli.commands:sample",
        "predict videos and write them as an mp4 file",
        _SAMPLED,
        (
            _CHECKPOINT,
            Option("output", "mp4 file to write", required=True, metavar="FILE"),
            Option("image", "image to use as the first frame (default: held-out clips)", metavar="FILE"),
            Option("video", "video to take the first frame from, and to show beside the predictions", metavar="FILE"),
            Option(
                "instruction", "what the robot should do; held-out clips have their own instructions", metavar="TEXT"
            ),
            Option("num_samples", "videos for each first frame (default: 1)", type=int, default=1, metavar="N"),
            Option(
                "num_clips",
                "held-out clips, without --image and --video (default: 4)",
                type=int,
                default=4,
                metavar="N",
            ),
        ),
    ),
    "chain": Verb(
        "vampo_core.cli.commands:chain",
        "do everything: record, pretrain, post-train, train policies, try them, and report",
        _ALL,
        (
            Option(
                "until",
                "last stage to run: data, base, vampo, features, policies or closed_loop (default: all stages)",
                metavar="STAGE",
            ),
        ),
    ),
    "doctor": Verb(
        "vampo_core.cli.doctor:doctor",
        "examine the installation and, with a configuration, whether a post-training can run",
        _ALL,
        examines=True,
    ),
    "config": Verb(
        "vampo_core.cli.commands:show_config", "show every setting with its value and its meaning, as YAML", _ALL
    ),
    "report": Verb("vampo_core.cli.commands:report", "write the report of the run in run.dir as an HTML page", _ALL),
    "compare": Verb(
        "vampo_core.cli.commands:compare_runs",
        "compare runs of predictors, or of policies, with the first one, on an HTML page",
        (),
        (Option("output", "HTML file to write (default: <first run>-compare.html beside it)", metavar="FILE"),),
        takes=Option("runs", "run folder; the others are compared with the first one", metavar="RUN"),
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code."""
    parser = _parser()
    args, rest = parser.parse_known_args(arguments)
    # argparse takes only one group of positional arguments, but key=value may stand before and after options
    unknown = [argument for argument in rest if argument.startswith("-")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    verb = VERBS[args.verb]
    options = {option.name: getattr(args, option.name) for option in verb.options}
    try:
        if verb.takes is not None:
            return _handler(verb)([*getattr(args, verb.takes.name), *rest], **options) or 0
        overrides = [*args.overrides, *rest]
        if verb.examines:
            return _handler(verb)(args.config, overrides=overrides, **options)
        config = load_config(args.config, *overrides)
        _note_unread(args.verb, verb, overrides)
        return _handler(verb)(config, **options) or 0
    except KeyboardInterrupt as error:
        return _fail(args, error, str(error) or "interrupted", 130)
    except ConfigError as error:
        return _fail(args, error, str(error), 2)
    except EXPECTED_ERRORS as error:
        return _fail(args, error, str(error) or type(error).__name__, 1)


def _note_unread(name: str, verb: Verb, overrides: Sequence[str]) -> None:
    """Say which settings on the command line have no effect; in a file, all sections are usual."""
    unread = [override for override in overrides if override.partition(".")[0] not in verb.reads]
    if unread:
        print(f"note: vampo {name} does not read {', '.join(unread)}", file=sys.stderr)


def _fail(args: argparse.Namespace, error: BaseException, message: str, code: int) -> int:
    if args.debug:
        traceback.print_exception(error)
    print(f"vampo {args.verb}: {message}", file=sys.stderr)
    return code


def _handler(verb: Verb) -> Callable[..., Any]:
    module, _, function = verb.handler.partition(":")
    return getattr(importlib.import_module(module), function)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vampo",
        description="Post-train video action models with reinforcement learning. `vampo VERB --help` shows the options "
        "of a verb.",
        epilog="A first run, in minutes on a CPU: vampo train --config pusht --continue",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"vampo_core {version()}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB", title="verbs")
    groups = {"": verbs}
    for name, verb in VERBS.items():
        first, _, second = name.rpartition(" ")
        if first not in groups:
            group = verbs.add_parser(first, help=_GROUPS[first], description=_sentence(_GROUPS[first]))
            groups[first] = group.add_subparsers(required=True, metavar="VERB", title="verbs")
        sub = groups[first].add_parser(
            second, help=verb.help, description=_sentence(verb.help), allow_abbrev=False, usage=_usage(name, verb)
        )
        sub.set_defaults(verb=name)
        if verb.takes is None:
            sub.add_argument(
                "--config", required=not verb.examines, metavar="FILE|PRESET",
                help=f"YAML file, run folder or preset ({', '.join(presets())})",
            )  # fmt: skip
        for option in verb.options:
            _add_option(sub, option)
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        if verb.takes is None:
            sub.add_argument(
                "overrides", nargs="*", metavar="key=value",
                help="settings that replace those of the configuration, such as grpo.num_generations=8",
            )  # fmt: skip
        else:
            sub.add_argument(verb.takes.name, nargs="+", metavar=verb.takes.metavar, help=verb.takes.help)
    return parser


def _add_option(parser: argparse.ArgumentParser, option: Option) -> None:
    flag = f"--{option.name.strip('_').replace('_', '-')}"
    if option.is_flag:
        parser.add_argument(flag, dest=option.name, action="store_true", help=option.help)
        return
    parser.add_argument(
        flag, dest=option.name, required=option.required, help=option.help, type=option.type,
        default=option.default, metavar=option.metavar,
    )  # fmt: skip


def _usage(name: str, verb: Verb) -> str:
    if verb.takes is not None:
        return f"vampo {name} {verb.takes.metavar} [{verb.takes.metavar} ...]{_required(verb)} [options]"
    config = "[--config FILE|PRESET]" if verb.examines else "--config FILE|PRESET"
    return f"vampo {name} {config}{_required(verb)} [options] [key=value ...]"


def _required(verb: Verb) -> str:
    return "".join(f" --{option.name} {option.metavar}" for option in verb.options if option.required)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
