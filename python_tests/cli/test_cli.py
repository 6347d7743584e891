"""The command line: what it hands to the handlers, what it says, and the code it ends with."""

import dataclasses
import subprocess
import sys
import types

import pytest
import torch

from vampo_core.cli import parser as cli
from vampo_core.cli.parser import main
from vampo_core.config import ConfigError, VampoConfig, load_config
from vampo_core.config.vampo import keys
from vampo_core.envs import SimulatorError
from vampo_core.training.checkpoint import CheckpointError


@pytest.fixture
def calls(monkeypatch):
    """Handlers of every verb replaced: they note their arguments, and do what ``calls.then`` says."""
    module = types.ModuleType("handlers_of_the_test")
    module.calls, module.then = [], lambda: None

    def handler(config, **options):
        module.calls.append((config, options))
        return module.then()

    module.run = handler
    monkeypatch.setitem(sys.modules, module.__name__, module)
    handler_name = f"{module.__name__}:run"
    verbs = {name: dataclasses.replace(verb, handler=handler_name) for name, verb in cli.VERBS.items()}
    monkeypatch.setattr(cli, "VERBS", verbs)
    return module


NOT_RESUMED = {"resume_from": None, "continue_": False}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--config", "pusht", "grpo.num_generations=4", "optim.lr=1e-4"],
        ["grpo.num_generations=4", "optim.lr=1e-4", "--config", "pusht"],
        ["grpo.num_generations=4", "--config", "pusht", "optim.lr=1e-4"],
        ["--config=pusht", "grpo.num_generations=9", "grpo.num_generations=4", "--debug", "optim.lr=1e-4"],
    ],
)
def test_overrides_stand_anywhere(calls, arguments):
    assert main(["train", *arguments]) == 0
    assert calls.calls == [(load_config("pusht", "grpo.num_generations=4", "optim.lr=1e-4"), NOT_RESUMED)]


def test_options_reach_the_handler(calls, tmp_path):
    config = load_config("pusht", f"run.dir={tmp_path}")
    config.save(tmp_path / "my.yaml")
    for verb in ("train", "pretrain"):
        assert main([verb, "--config", str(tmp_path / "my.yaml"), "--resume-from", "runs/a"]) == 0
        assert calls.calls.pop() == (config, {"resume_from": "runs/a", "continue_": False})
    assert main(["train", "--config", "pusht"]) == 0
    assert calls.calls.pop()[1] == NOT_RESUMED
    assert main(["train", "--continue", "--config", "pusht"]) == 0
    assert calls.calls.pop()[1] == {"resume_from": None, "continue_": True}
    assert main(["evaluate", "--config", "pusht", "--checkpoint", "runs/a", "--against", "runs/b"]) == 0
    assert calls.calls.pop()[1] == {"checkpoint": "runs/a", "against": "runs/b", "output": None}


def test_a_verb_of_two_words(calls, capsys):
    assert main(["policy", "train", "policy.lr=1e-4", "--config", "pusht", "--resume-from", "runs/a"]) == 0
    assert calls.calls.pop() == (load_config("pusht", "policy.lr=1e-4"), {"resume_from": "runs/a", "continue_": False})
    calls.then = lambda: int("x")
    assert main(["policy", "train", "--config", "pusht"]) == 1
    assert capsys.readouterr().err.startswith("vampo policy train: ")


def test_settings_that_a_verb_does_not_read_are_named(calls, capsys):
    assert main(["record", "--config", "pusht", "grpo.batch_size=4", "data.num_episodes=3", "optim.lr=1e-4"]) == 0
    assert capsys.readouterr().err == "note: vampo record does not read grpo.batch_size=4, optim.lr=1e-4\n"
    assert main(["train", "--config", "pusht", "grpo.batch_size=4"]) == 0
    assert capsys.readouterr().err == ""


def test_the_sections_of_every_verb_exist():
    sections = {field.name for field in dataclasses.fields(VampoConfig)}
    assert all(set(verb.reads) <= sections for verb in cli.VERBS.values())
    assert all(bool(verb.reads) == (verb.takes is None) for verb in cli.VERBS.values())


@pytest.mark.parametrize(
    "arguments",
    [
        ["runs/a", "runs/b", "--output", "x.html"],
        ["--output=x.html", "runs/a", "runs/b"],
        ["runs/a", "--output", "x.html", "runs/b"],
    ],
)
def test_a_verb_that_takes_words_has_no_configuration(calls, arguments):
    assert main(["compare", *arguments]) == 0
    assert calls.calls == [(["runs/a", "runs/b"], {"output": "x.html"})]


def test_config_shows_every_setting_with_its_meaning(tmp_path, capsys):
    assert main(["config", "--config", "pusht", "optim.lr=1e-5"]) == 0
    shown = capsys.readouterr().out
    (tmp_path / "shown.yaml").write_text(shown)
    assert load_config(tmp_path / "shown.yaml") == load_config("pusht", "optim.lr=1e-5")
    lines = shown.splitlines()
    settings = [i for i, line in enumerate(lines) if line.startswith("  ") and not line.strip().startswith("#")]
    assert len(settings) == len(keys()) and all(lines[i - 1].startswith("  # ") for i in settings)
    assert "  # Learning rate between warm-up and decay." in shown and "  lr: 1.0e-05" in shown


def test_the_handler_may_choose_the_exit_code(calls):
    calls.then = lambda: 7
    assert main(["train", "--config", "pusht"]) == 7


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "VERB"),
        (["trian", "--config", "pusht"], "'trian'"),
        (["train"], "--config"),
        (["policy"], "VERB"),
        (["policy", "tarin", "--config", "pusht"], "'tarin'"),
        (["train", "--config", "pusht", "--resume_from", "runs/a"], "--resume_from"),
        (["train", "--conf", "pusht"], "--conf"),
        (["evaluate", "--config", "pusht"], "--checkpoint"),
        (["compare"], "RUN"),
        (["compare", "runs/a", "--config", "pusht"], "--config"),
    ],
)
def test_wrong_usage_ends_with_2(calls, capsys, arguments, words):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2 and not calls.calls
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config", "pushtt"], "did you mean 'pusht'"),
        (["--config", "pusht", "grpo.num_generation=4"], "did you mean 'grpo.num_generations'"),
        (["--config", "pusht", "word"], "section.key=value"),
    ],
)
def test_a_wrong_configuration_is_one_line_and_ends_with_2(calls, capsys, arguments, words):
    assert main(["train", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("vampo train: ") and error.count("\n") == 1 and words in error
    assert not calls.calls


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ConfigError("run.dir is 'x', which holds a run"), 2, "run.dir is 'x'"),
        (ValueError("data.root is 'x'"), 1, "data.root is 'x'"),
        (OSError(28, "No space left on device"), 1, "No space left"),
        (ImportError("pip install gym-pusht"), 1, "pip install"),
        (FloatingPointError("loss is nan in iteration 7"), 1, "iteration 7"),
        (CheckpointError("checkpoint step-8"), 1, "step-8"),
        (SimulatorError("episode 3 of 'pusht' (seed 7)"), 1, "episode 3"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"), 1, "out of memory"),
        (ValueError(), 1, "ValueError"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_a_failed_run_is_one_line_without_traceback(calls, capsys, error, code, words):
    def fail():
        raise error

    calls.then = fail
    assert main(["train", "--config", "pusht"]) == code
    printed = capsys.readouterr().err
    assert printed.startswith("vampo train: ") and printed.count("\n") == 1 and words in printed

    assert main(["train", "--config", "pusht", "--debug"]) == code
    assert "Traceback" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(calls):
    def fail():
        raise TypeError("a bug")

    calls.then = fail
    with pytest.raises(TypeError):
        main(["train", "--config", "pusht"])


@pytest.mark.parametrize("verb", [[], ["policy"], *(name.split() for name in cli.VERBS)])
def test_help(capsys, verb):
    with pytest.raises(SystemExit) as caught:
        main([*verb, "--help"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    if " ".join(verb) == "compare":
        assert "RUN [RUN ...]" in printed and "--config" not in printed
    elif " ".join(verb) in cli.VERBS:
        assert "key=value" in printed and "(bridge, demo, metaworld, pusht)" in " ".join(printed.split())
    else:
        words = [name.split() for name in cli.VERBS]
        assert all(name[len(verb)] in printed for name in words if name[: len(verb)] == verb)


def test_python_m_vampo_core_imports_no_handler_before_the_configuration_is_right():
    process = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "vampo_core", "train", "--config=pusht", "grpo.num_generations=1"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert process.returncode == 2
    lines = process.stderr.splitlines()
    assert [line for line in lines if not line.startswith("import time:")] == [
        "vampo train: grpo.num_generations is 1, expected an integer at least 2"
    ]
    imported = {line.rpartition("|")[2].strip() for line in lines}
    assert "vampo_core.config.load" in imported
    assert not imported & {"vampo_core.grpo", "diffusers", "accelerate"}
