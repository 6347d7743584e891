"""What stops a run, what it says, and that nothing is lost by it."""

import importlib.util
import json
import math
import os
import signal
import subprocess
import sys

import pytest
import torch
from leftovers import leftover_of
from training_runs import (
    MadeUpEpisode,
    assert_same_run,
    gradient_of,
    make_config,
    make_model,
    make_pretrainer,
    make_trainer,
    relative_distance,
    trained_weights,
)

from vampo_core import api
from vampo_core.cli.parser import main
from vampo_core.config import ConfigError
from vampo_core.models.codecs.latent import LatentCodec
from vampo_core.models.predictor import VideoPredictor
from vampo_core.pipeline.base import base_config
from vampo_core.pipeline.codec import prepare_codec
from vampo_core.pipeline.predictor import load_predictor, new_predictor
from vampo_core.training import loop
from vampo_core.training.checkpoint import find_checkpoint
from vampo_core.training.optimizer import NonFiniteError
from vampo_core.training.pretrain import Pretrainer


def broken_in(iteration, value=math.nan, clip=1):
    """A reward that is not finite for one generation of one clip of an iteration."""
    calls = []

    def my_reward(pred, target, batch):
        if calls[-1:] != [batch["clip_id"][clip]]:  # the first iteration's draws are scored again
            calls.append(batch["clip_id"][clip])
        rewards = -(pred - target.unsqueeze(1)).abs().flatten(3).mean(-1)
        if len(calls) == iteration:
            rewards[clip, 2, 1] = value
        return rewards

    my_reward.calls = calls
    return my_reward


def fails_in_iteration_3(trainer, match):
    """Run until the error; the weights are those of iteration 2, and so is the checkpoint."""
    config, seen = trainer.config, []

    trainer.callbacks.append(lambda trainer, row: seen.append(trained_weights(trainer)))
    with pytest.raises(NonFiniteError, match=match) as caught:
        trainer.train()
    assert "\n" not in str(caught.value) and len(seen) == 2
    now = trained_weights(trainer)
    assert all(torch.equal(now[name], seen[-1][name]) for name in now)
    assert find_checkpoint(config.run.dir).name == "step-2"
    assert len((find_checkpoint(config.run.dir).parents[1] / "metrics.jsonl").read_text().splitlines()) == 2
    loaded = load_predictor(config, config.run.dir)
    assert all(torch.equal(p, dict(loaded.named_parameters())[name]) for name, p in now.items())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_not_finite_is_named_with_its_clip(tmp_path, value):
    reward = broken_in(3, value)
    with pytest.raises(NonFiniteError) as caught:
        make_trainer(make_config(tmp_path / "a"), reward_funcs=[reward]).train()
    assert f"iteration 3: reward my_reward is not finite for clip {reward.calls[-1]}" in str(caught.value)
    fails_in_iteration_3(make_trainer(make_config(tmp_path / "b"), reward_funcs=[broken_in(3, value)]), "iteration 3")


def test_a_run_that_stopped_on_a_bad_reward_resumes(tmp_path):
    with pytest.raises(NonFiniteError):
        make_trainer(make_config(tmp_path / "a"), reward_funcs=[broken_in(3)]).train()
    make_trainer(make_config(tmp_path / "a"), reward_funcs=[broken_in(99)]).train(resume_from=tmp_path / "a")
    make_trainer(make_config(tmp_path / "b"), reward_funcs=[broken_in(99)]).train()
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_a_loss_that_is_not_finite(tmp_path, monkeypatch):
    """A log-probability goes bad in iteration 3, after two good ones."""
    trainer, calls = make_trainer(make_config(tmp_path)), []
    original = trainer.engine.log_prob

    def log_prob(*args):
        calls.append(args)
        return original(*args) * (math.nan if len(calls) == 3 else 1)

    monkeypatch.setattr(trainer.engine, "log_prob", log_prob)
    fails_in_iteration_3(trainer, "iteration 3: the loss is nan")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_named(tmp_path, value):
    """The culprit is neither the first parameter nor the one that clipping would spread it to."""
    trainer, name = make_trainer(make_config(tmp_path)), "unet.up_blocks.1.resnets.0.spatial_res_block.conv1.weight"
    calls = []

    def spoil(gradient):
        calls.append(gradient)
        return (
            torch.where(torch.arange(len(gradient)).view(-1, 1, 1, 1) == 3, value, gradient)
            if len(calls) == 3
            else None
        )

    dict(trainer.model.named_parameters())[name].register_hook(spoil)
    fails_in_iteration_3(trainer, rf"iteration 3: the gradient of {name} is not finite".replace(".", r"\."))


def test_a_gradient_that_went_bad_in_a_later_inner_epoch(tmp_path):
    trainer = make_trainer(make_config(tmp_path, "grpo.num_inner_epochs=2"))
    calls = []
    parameter = dict(trainer.model.named_parameters())["unet.conv_out.bias"]
    parameter.register_hook(lambda g: calls.append(g) or (g * math.nan if len(calls) == 4 else None))
    with pytest.raises(NonFiniteError, match=r"iteration 2: the gradient of unet\.conv_out\.bias"):
        trainer.train()
    assert all(torch.isfinite(value).all() for value in trained_weights(trainer).values())
    assert find_checkpoint(tmp_path).name == "step-1"


def test_pretraining_stops_on_a_bad_step_too(tmp_path, monkeypatch):
    pretrainer, original = make_pretrainer(make_config(tmp_path)), MadeUpEpisode.latents
    reads = []

    def latents(episode, indices):
        reads.append(episode)
        return original(episode, indices) * (math.nan if len(reads) > 4 else 1)

    monkeypatch.setattr(MadeUpEpisode, "latents", latents)  # two clips a step
    with pytest.raises(NonFiniteError, match="step 3: the loss is nan"):
        pretrainer.train()
    assert find_checkpoint(tmp_path).name == "step-2"
    assert all(torch.isfinite(value).all() for value in trained_weights(pretrainer).values())


def test_gradients_are_clipped_together(tmp_path):
    """The norm that is logged is the one before, the update is made from the one after."""
    gradient = gradient_of(make_trainer(make_config(tmp_path)))
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradient.values()))
    trainer = make_trainer(make_config(tmp_path, f"optim.max_grad_norm={norm / 4}"))
    seen = {}
    original = trainer.optimizer.adamw.step

    def step():
        named = zip(trainer.optimizer.names, trainer.optimizer.parameters, strict=True)
        seen.update({name: p.grad.clone() for name, p in named})
        original()

    trainer.optimizer.adamw.step = step
    row = trainer.iterate(1, trainer.batches(0))
    assert row["grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert relative_distance(seen, {name: g / 4 for name, g in gradient.items()}) < 1e-4


def test_learning_rate_rises_and_falls_by_updates(tmp_path):
    settings = ["grpo.num_iterations=4", "grpo.num_inner_epochs=2", "optim.warmup_steps=4", "optim.decay_steps=4"]
    trainer = make_trainer(make_config(tmp_path, *settings))
    rates = [trainer.iterate(i, trainer.batches(i - 1))["lr"] for i in (1, 2, 3, 4)]
    assert rates == pytest.approx([0.25e-3, 0.75e-3, 1e-3, 0.5e-3])  # of the first of two updates each


# the preset's path: data, base, post-training


def make_vpp(root, num_episodes=4):
    """A data set of latents in the VPP layout."""
    (root / "annotation" / "train").mkdir(parents=True)
    for number in range(num_episodes):
        (root / "latents").mkdir(exist_ok=True)
        torch.save(MadeUpEpisode(number, length=6).latents(range(6)), root / "latents" / f"{number}.pt")
        annotation = {
            "texts": ["push the block"],
            "videos": [{"video_path": f"videos/{number}.mp4"}],
            "latent_videos": [{"latent_video_path": f"latents/{number}.pt"}],
            "video_length": 6,
        }
        (root / "annotation" / "train" / f"{number}.json").write_text(json.dumps(annotation))
    return root


@pytest.fixture
def preset(tmp_path):
    """Overrides of the preset ``bridge`` for made-up data and a tiny model."""
    settings = make_config(tmp_path / "runs" / "a").to_dict()
    changed = {
        **{f"grpo.{key}": settings["grpo"][key] for key in ("num_iterations", "batch_size", "num_generations")},
        **{f"pretrain.{key}": settings["pretrain"][key] for key in settings["pretrain"]},
        "sampler.num_inference_steps": 4, "model.block_out_channels": [32, 32], "data.num_frames": 3,
        "data.root": make_vpp(tmp_path / "data"), "evaluation.num_clips": 2, "run.dir": tmp_path / "runs" / "a",
    }  # fmt: skip
    return [f"{key}={value}" for key, value in changed.items()]


def test_the_command_line_from_nothing_to_a_trained_model(tmp_path, preset, capsys):
    arguments = ["train", "--config", "bridge", *preset]
    assert main(arguments) == 0
    assert "paired difference" in capsys.readouterr().out
    assert main(arguments) == 2
    assert f"--resume-from {tmp_path / 'runs' / 'a'} " in capsys.readouterr().err
    report = tmp_path / "runs" / "a" / "report.html"
    before = report.stat().st_mtime_ns
    assert main([*arguments, "--resume-from", str(tmp_path / "runs" / "a")]) == 0
    assert report.stat().st_mtime_ns == before  # nothing new to tell
    assert main([*arguments, "grpo.num_iterations=5", "--resume-from", str(tmp_path / "runs" / "a")]) == 0
    assert report.stat().st_mtime_ns > before
    assert main([*arguments, "run.overwrite=true", "optim.lr=1e-5"]) == 0
    assert "(found)" in capsys.readouterr().out
    assert [path.name[:5] for path in (tmp_path / "runs").glob("[!.]*") if path.name != "a"] == ["base-"]

    assert main([*arguments, "grpo.num_generation=4"]) == 2
    assert "did you mean 'grpo.num_generations'" in capsys.readouterr().err
    assert main([*arguments, "run.overwrite=true", f"data.root={tmp_path / 'none'}"]) == 1
    assert "none" in capsys.readouterr().err
    assert main([*arguments, "run.overwrite=true", f"model.pretrained={tmp_path / 'none'}"]) == 1
    assert "expected a folder" in capsys.readouterr().err
    checkpoint = str(tmp_path / "runs" / "a")
    assert main(["evaluate", "--config", "bridge", *preset, "--checkpoint", checkpoint, "--against", checkpoint]) == 0
    assert "2 held-out clips" not in capsys.readouterr().err


def test_a_run_folder_that_holds_a_run_is_refused_before_work(tmp_path):
    make_trainer(make_config(tmp_path)).train()
    with pytest.raises(ConfigError, match=r"holds a run already.*resume_from=.*run\.overwrite=true"):
        make_trainer(make_config(tmp_path)).train()
    again = make_trainer(make_config(tmp_path, "run.overwrite=true")).train()
    assert [row["iteration"] for row in again.history] == [1, 2, 3, 4]


def test_pretraining_from_scratch_heeds_gradient_checkpointing_and_refuses_adapters(tmp_path, preset, capsys):
    config = api.load_config("bridge", *preset, "model.gradient_checkpointing=true")
    codec = LatentCodec(latent_channels=4, scaling_factor=0.18215)
    assert new_predictor(config, codec).unet.is_gradient_checkpointing
    saving = api.pretrain(config, f"run.dir={tmp_path}/saving")
    plain = api.pretrain(config, f"run.dir={tmp_path}/plain", "model.gradient_checkpointing=false")
    assert saving.after.l1.mean == pytest.approx(plain.after.l1.mean, rel=1e-4)
    assert main(["pretrain", "--config", "bridge", *preset, "model.lora=4"]) == 2
    assert "model.lora is 4 with model.pretrained = null, expected 0" in capsys.readouterr().err


def test_a_missing_tracker_is_told_before_work(tmp_path, preset, monkeypatch, capsys):
    original = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "wandb" else original(name))
    assert main(["train", "--config", "bridge", *preset, "run.trackers=[wandb]"]) == 2
    assert "pip install vampo_core[wandb]" in capsys.readouterr().err
    assert not (tmp_path / "runs" / "a" / "config.yaml").exists() and not list((tmp_path / "runs").glob("base-*"))


@pytest.mark.parametrize("broken", ["Trackers", "read_state"])
def test_a_run_that_cannot_begin_leaves_nothing_behind(tmp_path, monkeypatch, broken):
    """Signals are handled as before, and the folder is free."""
    make_trainer(make_config(tmp_path, "grpo.num_iterations=2")).train()
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]

    def fail(*arguments, **options):
        raise OSError("the server is down")

    monkeypatch.setattr(loop, broken, fail)
    with pytest.raises(OSError, match="the server is down"):
        make_trainer(make_config(tmp_path)).train(resume_from=tmp_path)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    lock = "import filelock, sys; filelock.FileLock(sys.argv[1]).acquire(timeout=0)"
    subprocess.run([sys.executable, "-c", lock, tmp_path / ".lock"], check=True)
    monkeypatch.undo()
    assert len(make_trainer(make_config(tmp_path)).train(resume_from=tmp_path).history) == 4


def test_an_interrupt_while_the_base_is_pretrained_ends_the_command(tmp_path, preset, monkeypatch, capsys):
    """Nobody wants VAMPO on a base that is half trained."""
    iterate, calls = Pretrainer.iterate, []

    def interrupted(pretrainer, iteration, batches):
        calls.append(iteration)
        if iteration == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return iterate(pretrainer, iteration, batches)

    monkeypatch.setattr(Pretrainer, "iterate", interrupted)
    assert main(["train", "--config", "bridge", *preset]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert calls == [1, 2] and not (tmp_path / "runs" / "a" / "config.yaml").exists()
    monkeypatch.setattr(Pretrainer, "iterate", lambda *args: calls.append(args[1]) or iterate(*args))
    assert main(["train", "--config", "bridge", *preset]) == 0
    assert calls == [1, 2, 3, 4]


@pytest.mark.parametrize("left", ["config.yaml", "checkpoints"])
def test_a_base_that_was_killed_before_its_first_checkpoint_is_begun_again(tmp_path, preset, left):
    config = api.load_config("bridge", *preset)
    base = tmp_path / base_config(config, prepare_codec(config)).run.dir
    base.mkdir(parents=True)
    (base / "config.yaml").write_text(config.to_yaml())
    if left == "checkpoints":
        leftover_of(base / "checkpoints" / "step-0").mkdir(parents=True)
        (base / "metrics.jsonl").write_text("")
    result = api.train(config)
    assert len(result.history) == 4 and find_checkpoint(base).name == "step-4"


def test_adapters_follow_from_the_seed(tmp_path, preset):
    """PEFT draws them at random: ``config.yaml`` must say how they come out."""
    model = make_model(make_config(tmp_path))
    model.save_pretrained(tmp_path / "model")
    config = make_config(tmp_path, "model.lora=2")
    first, second = (trained_adapter(load_predictor(config, tmp_path / "model")) for _ in range(2))
    assert relative_distance(second, first) == 0
    other = make_config(tmp_path, "model.lora=2", "run.seed=1")
    assert relative_distance(trained_adapter(load_predictor(other, tmp_path / "model")), first) > 0.1


def test_a_checkpoint_holds_the_adapter_alone_too(tmp_path):
    """As PEFT writes it: anyone puts it on the base UNet, and has the policy."""
    peft = pytest.importorskip("peft")
    make_model(make_config(tmp_path)).save_pretrained(tmp_path / "base")
    config = make_config(tmp_path / "run", "model.lora=2", "model.ema_decay=0.5")
    trainer = make_trainer(config, model=load_predictor(config, tmp_path / "base"))
    trainer.train()
    checkpoint = find_checkpoint(tmp_path / "run")
    assert (checkpoint / "adapter" / "adapter_model.safetensors").is_file()
    batch = next(trainer.batches(0))
    condition = trainer.model.condition(instructions=batch["instruction"], first_latents=batch["latents"][:, 0])
    trainer.model.eval()
    with torch.no_grad(), trainer.optimizer.ema_weights():
        policy = trainer.model(batch["latents"], 3.0, condition)
        model = VideoPredictor.from_pretrained(tmp_path / "base")
        base = model(batch["latents"], 3.0, condition)
        model.unet = peft.PeftModel.from_pretrained(model.unet, checkpoint / "adapter").base_model.model
        assert torch.equal(model(batch["latents"], 3.0, condition), policy)
    assert not torch.equal(base, policy)


def trained_adapter(model):
    return {name: p.detach() for name, p in model.named_parameters() if "lora_" in name}
