"""``vampo doctor``: what it says of sound and of broken installations, data and settings, and its exit code."""

import importlib.util
import json
import os
from pathlib import Path

import pytest
import tiny_run
import torch
from svd_folder import make_svd_pipeline

from vampo_core import _extension
from vampo_core.cli.parser import main
from vampo_core.config import load_config
from vampo_core.envs import SimulatorError
from vampo_core.pipeline import doctor_installation, doctor_run, dry_run
from vampo_core.pipeline.doctor import examine
from vampo_core.pipeline.plan import memory_plan

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


@pytest.fixture
def settings(tmp_path):
    """A file with a run of a tiny predictor on made-up episodes, and what the doctor says of it with changes."""
    tiny_run.write_dataset(tmp_path / "data")
    tiny_run.settings(tmp_path).save(tmp_path / "my.yaml")
    return tmp_path / "my.yaml"


def lines(settings, *overrides, level=None):
    found = [d for d in examine(str(settings), overrides) if level in (None, d.level)]
    return {d.subject: f"{d.level} {d.found}" for d in found}


def test_a_sound_run(settings, capsys, tmp_path):
    before = sorted(path for path in tmp_path.rglob("*"))
    assert main(["doctor", "--config", str(settings)]) == 0
    printed = capsys.readouterr().out
    assert printed.endswith("\nnothing is broken\n") and "broken  " not in printed
    for line in (
        "ok       compiled operators: CPU",
        "6 episodes, 2 actions a frame; 6 of them read",
        "4 episodes to train on, 2 held out",
        "ok       dry run: 2 clips of 2, 2 generations each",
    ):
        assert line in printed
    levels = {line[:9].strip() for line in printed.partition("\nnothing")[0].splitlines()}
    assert levels <= {"ok", "note", "warning", ""}, "every line begins with its level, in nine places"
    assert sorted(tmp_path.rglob("*")) == before, "nothing is written, run.dir least of all"


def test_the_installation_alone(capsys):
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert f"torch {torch.__version__}" in printed and "dry run" not in printed


def test_settings_without_a_configuration(capsys):
    assert main(["doctor", "run.dir=x"]) == 2
    assert "run.dir=x is given without --config" in capsys.readouterr().err


def test_a_wrong_configuration_comes_after_the_installation(settings, capsys):
    assert main(["doctor", "--config", str(settings), "grpo.num_generations=1"]) == 1
    printed = capsys.readouterr().out
    assert "broken   configuration: grpo.num_generations is 1, expected an integer at least 2" in printed
    assert printed.index("ok       vampo_core") < printed.index("broken   configuration")
    what, remedy = printed.splitlines()[-2:]
    assert what.startswith("1. configuration: grpo.num_generations is 1") and remedy.startswith("   correct it")


def test_what_to_mend_first_comes_first(settings, tmp_path, capsys):
    wrong = [f"data.root={tmp_path}/nowhere", f"model.pretrained={tmp_path}/nothing"]
    assert main(["doctor", "--config", str(settings), *wrong]) == 1
    last = capsys.readouterr().out.partition("to mend, first things first")[2].splitlines()[1:]
    assert [line.split()[1] for line in last if not line.startswith("   ")] == ["data", "model:"]
    found = lines(settings, *wrong)
    assert found["dry run"] == "note left out until the rest is mended"
    assert str(tmp_path / "nothing") in found["model"]


@pytest.mark.parametrize("extra", ["lora", "tensorboard"])
def test_a_missing_extra(settings, monkeypatch, extra):
    modules = doctor_installation.EXTRAS[extra][0]
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in modules else find(name))
    assert lines(settings, "model.lora=0", level="note")[f"extra {extra}"].startswith("note not installed, for ")
    needs = {"lora": "model.lora=2", "tensorboard": "run.trackers=[tensorboard]"}[extra]
    broken = [d for d in examine(str(settings), [needs]) if d.level == "broken"]
    assert [d.remedy for d in broken if d.subject == f"extra {extra}"] == [f'pip install "vampo_core[{extra}]"']


def test_every_extra_is_known():
    section = PYPROJECT.read_text().partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    names = {line.partition(" = ")[0] for line in section.splitlines() if " = [" in line}
    assert names - {"test", "dev", "docs"} == set(doctor_installation.EXTRAS)


def test_no_compiled_operators(monkeypatch):
    monkeypatch.setattr(_extension, "LOADED", False)
    monkeypatch.setattr(_extension, "_missing", "there are no compiled operators", raising=False)
    (found,) = [d for d in examine(None) if d.subject == "compiled operators"]
    assert found.level == "warning" and "there are no" in found.found and "pip install ." in found.remedy


def test_operators_that_compute_something_else(monkeypatch):
    original = doctor_installation.reference.latent_reward

    class Off:
        reward = property(lambda self: self.value + 0.1)

    def wrong(pred, target):
        off = Off()
        off.value = original(pred, target).reward
        return off

    monkeypatch.setattr(doctor_installation.reference, "latent_reward", wrong)
    (found,) = [d for d in examine(None) if d.subject == "compiled operators"]
    assert (found.level, found.found) == ("broken", "CPU: differs from its reference")


@pytest.mark.parametrize(
    ("cuda", "is_there", "hidden", "level", "words"),
    [
        (None, False, None, "ok", "built without CUDA"),
        (None, True, None, "warning", "built without CUDA, beside a GPU"),
        ("13.0", False, None, "note", "there is no GPU"),
        ("13.0", True, "", "note", "CUDA_VISIBLE_DEVICES=''"),
        ("13.0", True, None, "warning", "driver"),
    ],
)
def test_why_there_is_no_cuda(monkeypatch, cuda, is_there, hidden, level, words):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(doctor_installation.shutil, "which", lambda name: name if is_there else None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    (found,) = [d for d in examine(None) if d.subject.startswith("torch ")]
    assert found.level == level and words in found.found


def test_more_threads_than_cores(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(4)))
    monkeypatch.setattr(doctor_installation, "_cpu_quota", lambda: 2.0)
    (found,) = [d for d in examine(None) if d.subject == "CPU threads"]
    assert found.level == "warning" and "64, on 2" in found.found and "run.num_threads=2" in found.remedy


@pytest.mark.parametrize(("free", "level"), [(100, "broken"), (2**30, "warning"), (2**40, "ok")])
def test_disk(monkeypatch, tmp_path, free, level):
    usage = type("Usage", (), {"free": free})
    monkeypatch.setattr(doctor_installation.shutil, "disk_usage", lambda folder: usage)
    assert doctor_installation.disk("disk", tmp_path / "not" / "there").level == level


def test_a_folder_that_cannot_be_written_to(settings, tmp_path):
    (tmp_path / "file").write_text("")
    found = lines(settings, f"run.dir={tmp_path}/file/run")
    assert "cannot be written to" in found["disk of run.dir"] and found["dry run"].startswith("note")


def test_a_folder_that_holds_a_run(tiny_run):
    found = lines(tiny_run.run.dir)
    assert found["run.dir"].startswith("warning") and "holds a run already" in found["run.dir"]
    assert found["dry run"].startswith("ok")


def test_damaged_episodes(settings, tmp_path):
    subject = f"data {tmp_path}/data"
    video = next((tmp_path / "data").rglob("000002*"))
    for file in video.glob("*.mp4"):
        file.write_bytes(file.read_bytes()[:200])
    found = [d for d in examine(str(settings)) if d.subject == subject]
    assert found[0].level == "warning" and "1 damaged: 000002" in found[0].found and found[0].remedy
    assert lines(settings, "data.strict=true", level="broken").keys() == {subject}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.format=lerobot"], "info.json"),
        (["data.held_out_fraction=0.01"], "held"),
    ],
)
def test_wrong_data(settings, overrides, words):
    broken = lines(settings, *overrides, level="broken")
    assert any(subject.startswith("data ") and words in text for subject, text in broken.items()), broken


def test_clips_longer_than_episodes_and_rewards_without_actions(tmp_path):
    tiny_run.write_latent_dataset(tmp_path / "data")
    tiny_run.settings(
        tmp_path,
        "data.format=vpp",
        "model.latent_channels=4",
        "data.num_frames=20",
        "data.stride=1",
        "evaluation.action_error=false",
    ).save(tmp_path / "my.yaml")
    found = [d.found for d in examine(str(tmp_path / "my.yaml"), ["reward.action_weight=1"])]
    assert "no episode has the 20 frames of a clip; the longest has 12" in found
    assert "reward.action_weight is 1.0, but the data has no actions" in found


def test_latents_that_came_with_the_data_give_the_size(tmp_path, monkeypatch):
    tiny_run.write_latent_dataset(tmp_path / "data")
    tiny_run.settings(tmp_path, "data.format=vpp", "model.latent_channels=4").save(tmp_path / "my.yaml")
    shapes = []
    original = dry_run._MadeUp.__init__
    monkeypatch.setattr(
        dry_run._MadeUp, "__init__", lambda self, *args: (shapes.append(args[2]), original(self, *args))[1]
    )
    assert lines(tmp_path / "my.yaml")["dry run"].startswith("ok")
    assert set(shapes) == {(4, 8, 8)}


def test_a_pretrained_model(settings, tmp_path):
    make_svd_pipeline().save_pretrained(tmp_path / "svd")
    found = lines(settings, f"model.pretrained={tmp_path}/svd", "model.lora=2", "sampler.tail_chunk_size=2")
    assert found["model"] == f"ok {tmp_path}/svd" and found["dry run"].startswith("ok")


def test_memory_that_is_not_there(settings, monkeypatch):
    need = memory_plan(load_config(str(settings))).total
    for capacity, level in ((2 * need, "ok"), (1.05 * need, "warning"), (0.5 * need, "broken")):
        monkeypatch.setattr(doctor_run, "available_memory", lambda capacity=capacity: capacity)
        diagnosis, _ = doctor_run.memory(load_config(str(settings)))
        assert diagnosis.level == level and (level == "ok" or "to take less: " in diagnosis.remedy)


@pytest.mark.parametrize("error", [ValueError("grpo.batch_size is 3"), torch.OutOfMemoryError("CUDA out of memory")])
def test_what_only_a_dry_run_finds(settings, monkeypatch, error):
    def fail(*args):
        raise error

    monkeypatch.setattr(dry_run.VampoTrainer, "iterate", fail)
    broken = lines(settings, level="broken")
    assert broken.keys() == {"dry run"} and str(error) in broken["dry run"]


def test_a_dry_run_tells_of_illness(settings, monkeypatch):
    record = dry_run.VampoTrainer._record
    monkeypatch.setattr(dry_run.VampoTrainer, "_record", lambda *args: record(*args) | {"replay_max_dev": 1.0})
    warned = lines(settings, level="warning")
    assert "log-probabilities differ" in warned["dry run, ratios off 1"]


def test_data_that_will_be_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor_run, "simulators", lambda config: ())
    tiny_run.settings(tmp_path, "data.env=pusht").save(tmp_path / "my.yaml")
    found = lines(tmp_path / "my.yaml")[f"data {tmp_path}/data"]
    assert found == "note not there yet; 240 episodes of pusht are recorded first"
    assert not (tmp_path / "data").exists()
    tiny_run.write_dataset(tmp_path / "data")
    info = tmp_path / "data" / "dataset.json"
    recorded = {"env": "metaworld/reach", "env_kwargs": {"image_size": 32}, "action_noise": 0.0, "seed": 0}
    info.write_text(json.dumps(json.loads(info.read_text()) | recorded))
    assert "broken data.env is 'pusht', but" in lines(tmp_path / "my.yaml")[f"data {tmp_path}/data"]
    info.write_text(json.dumps(json.loads(info.read_text()) | {"env": "pusht"}))
    assert any("6 episodes; 234 more are recorded first" in d.found for d in examine(str(tmp_path / "my.yaml")))


def test_simulators(tmp_path):
    config = load_config("pusht", "data.env=simulators:line", "closed_loop.env=no_such_module:Thing")
    found = list(doctor_run.simulators(config))
    assert [d.level for d in found] == ["ok", "broken"], found
    assert "no_such_module" in found[1].found and "renders 64 by 64 pixels, 1 actions" in found[0].found


def test_a_simulator_that_dies(monkeypatch):
    def fail(*args, **options):
        raise SimulatorError("it died")

    monkeypatch.setattr(doctor_run.Workers, "receive", fail)
    (found,) = doctor_run.simulators(load_config("pusht"))
    assert (found.level, found.found) == ("broken", "it died")


def test_a_simulator_without_an_expert_is_no_fault(tmp_path):
    config = load_config("pusht", "data.env=null", "closed_loop.env=simulators:no_expert")
    (found,) = doctor_run.simulators(config)
    assert found.level == "ok", found
    (found,) = doctor_run.simulators(load_config("pusht", "data.env=simulators:no_expert"))
    assert found.level == "broken" and "expert" in found.found


def test_folders_that_are_not_there(settings):
    found = lines(settings, "reward.action_weight=1", "reward.action_decoder=/nope", level="broken")
    assert found["reward.action_decoder"] == "broken there is nothing at /nope"
