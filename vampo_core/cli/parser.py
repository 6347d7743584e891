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

from vampo_core._extension import version
from vampo_core.config import ConfigError, load_config, presets
from vampo_core.data.episode import EpisodeError
from vampo_core.envs import SimulatorError
from vampo_core.training.checkpoint import CheckpointError

EXPECTED_ERRORS = (
    *(ValueError, OSError, ImportError, ArithmeticError, CheckpointError, EpisodeError),
    *(SimulatorError, torch.OutOfMemoryError),
)
"""What wrong data, a full disk or device, a killed worker or a diverged run raise: told in one line. Anything else is a
bug, with traceback."""


@dataclass(frozen=True)
class Option:
    """An option of one verb, handed to its handler as the keyword argument of the same name."""

    name: str
    help: str
    required: bool = False
    type: Callable[[str], Any] = str
    default: Any = None


@dataclass(frozen=True)
class Verb:
    """A subcommand.

    ``handler`` is ``"module:function"``, called as ``function(config, **options)`` and imported only then; it returns
    an exit code, or None for success.
    """

    handler: str
    help: str
    options: tuple[Option, ...] = ()


_RESUME = Option("resume_from", "run folder or checkpoint to continue from")
_GROUPS = {"policy": "the action model"}
"""First words of verbs of two words, and what these are about."""
VERBS = {
    "record": Verb("vampo_core.cli.commands:record", "record expert episodes from a simulator"),
    "encode": Verb("vampo_core.cli.commands:encode", "turn recorded videos into latents"),
    "pretrain": Verb("vampo_core.cli.commands:pretrain", "train a base predictor on expert videos", (_RESUME,)),
    "train": Verb("vampo_core.cli.commands:train", "post-train a predictor with VAMPO", (_RESUME,)),
    "policy train": Verb(
        "vampo_core.cli.commands:train_policy", "train a policy on a predictor's features", (_RESUME,)
    ),
    "policy eval": Verb(
        "vampo_core.cli.commands:evaluate_policy",
        "let a policy act in the simulator and count what it gets done",
        (
            Option("checkpoint", "run folder, checkpoint or policy folder; without it the simulator's expert acts"),
            Option("against", "another policy, compared with it episode by episode"),
            Option("output", "folder of episodes and videos (default: <run.dir>/closed_loop)"),
        ),
    ),
    "evaluate": Verb(
        "vampo_core.cli.commands:evaluate",
        "measure a predictor on held-out clips",
        (
            Option("checkpoint", "run folder, checkpoint or model folder", required=True),
            Option("against", "another one, compared with it clip by clip"),
            Option("output", "JSON file for the results"),
        ),
    ),
    "sample": Verb(
        "vampo_core.cli.commands:sample",
        "predict videos from a first frame and an instruction, or of held-out clips",
        (
            Option("checkpoint", "run folder, checkpoint or model folder", required=True),
            Option("output", "mp4 file to write", required=True),
            Option("image", "picture of the first frame"),
            Option("video", "video whose first frame is given, and which is shown beside the predictions"),
            Option("instruction", "what the robot is told to do; held-out clips have their own"),
            Option("num_samples", "videos of each first frame (default: 1)", type=int, default=1),
            Option("num_clips", "held-out clips, without --image and --video (default: 4)", type=int, default=4),
        ),
    ),
    "chain": Verb(
        "vampo_core.cli.commands:chain",
        "record, pretrain, post-train, train policies and try them, on one page",
        (Option("until", "last stage to run: data, base, vampo, features or policies (default: all)"),),
    ),
    "report": Verb("vampo_core.cli.commands:report", "write report.html of the run in run.dir"),
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
        config = load_config(args.config, *args.overrides, *rest)
        return _handler(verb)(config, **options) or 0
    except KeyboardInterrupt as error:
        return _fail(args, error, str(error) or "interrupted", 130)
    except ConfigError as error:
        return _fail(args, error, str(error), 2)
    except EXPECTED_ERRORS as error:
        return _fail(args, error, str(error) or type(error).__name__, 1)


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
        prog="vampo", description="Reinforcement-learning post-training of video action models.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"vampo_core {version()}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    groups = {"": verbs}
    for name, verb in VERBS.items():
        first, _, second = name.rpartition(" ")
        if first not in groups:
            about = _GROUPS[first]
            group = verbs.add_parser(first, help=about, description=f"{about[0].upper()}{about[1:]}.")
            groups[first] = group.add_subparsers(required=True, metavar="VERB")
        sub = groups[first].add_parser(
            second, help=verb.help, description=f"{verb.help[0].upper()}{verb.help[1:]}.", allow_abbrev=False
        )
        sub.set_defaults(verb=name)
        sub.add_argument(
            "--config", required=True, metavar="FILE|PRESET",
            help=f"YAML file, run folder or preset ({', '.join(presets())})",
        )  # fmt: skip
        for option in verb.options:
            flag = f"--{option.name.replace('_', '-')}"
            sub.add_argument(
                flag, dest=option.name, required=option.required, help=option.help, type=option.type,
                default=option.default,
            )  # fmt: skip
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        sub.add_argument("overrides", nargs="*", metavar="key=value", help="settings, such as grpo.num_generations=8")
    return parser
