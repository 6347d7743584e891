"""Two processes that share a model with FSDP 2 make the run that one makes; what does not go with it is refused."""

import contextlib
import json
import os
import shutil

import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from safetensors.torch import load_file
from sharded_runs import Job, run_pair, weights_of
from training_runs import WAN, make_config, make_model, make_pretrainer, make_trainer, metrics_of, relative_distance

from vampo_core.config import ConfigError
from vampo_core.training import sharding
from vampo_core.training.checkpoint import CheckpointError, Checkpoints
from vampo_core.training.processes import launcher_shards, new_accelerator

COMMON = [
    "grpo.num_iterations=3", "grpo.batch_size=4", "optim.lr=1e-5", "run.eval_every=3", "run.save_every=99",
    "evaluation.batch_size=2", "pretrain.num_steps=3", "pretrain.batch_size=4", "pretrain.lr=1e-5",
    "pretrain.eval_every=3", "pretrain.save_every=99",
]  # fmt: skip
SETTINGS = {
    # three batches of held-out clips for two processes
    "everything": [
        *WAN, "grpo.kl_coef=0.1", "grpo.anchor_coef=1", "grpo.num_inner_epochs=2", "model.ema_decay=0.5",
        "optim.gradient_accumulation_steps=2", "evaluation.batch_size=1",
    ],
    "adapters": [*WAN, "model.lora=2", "grpo.kl_coef=0.1", "model.gradient_checkpointing=true"],
    "pathwise": [
        *WAN, "grpo.credit=pathwise", "grpo.num_generations=2", "sampler.tail_chunk_size=2",
        "model.gradient_checkpointing=true",
    ],
    "UNet, every step": [
        "grpo.kl_coef=0.1", "model.ema_decay=0.5", "model.gradient_checkpointing=true",
        "sampler.stochastic_steps=[0,1,2]", "sampler.sigma_min=1.0",
    ],
    "UNet, adapters, pathwise": [
        "model.lora=2", "grpo.credit=pathwise", "grpo.num_generations=2", "optim.gradient_accumulation_steps=2",
    ],
    "pretrain": WAN,
    "bfloat16": [*WAN, "model.dtype=bfloat16", "model.lora=2", "grpo.kl_coef=0.1"],
    "float16": ["model.dtype=float16"],
}  # fmt: skip
EXACT = [name for name in SETTINGS if "float16" not in name]
FAULTS = {
    "reward": "NonFiniteError: iteration 1: reward _odd is not finite for clip",
    "loss": "NonFiniteError: iteration 1: the loss is n",
    "shards": "CheckpointError: checkpoint .*step-0 could not be written .*No space left on device",
    "model": "CheckpointError: checkpoint .*step-0 could not be written .*No space left on device",
}
"""What both processes say when one of them fails."""


def make(name, folder, *more):
    """A trainer of this process."""
    config = make_config(folder, *COMMON, *SETTINGS[name], *more)
    return make_pretrainer(config) if name == "pretrain" else make_trainer(config)


@contextlib.contextmanager
def one_thread():
    """Small runs take longer in several, where others work beside them."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folder of all runs: ``<name>-one`` and ``<name>-two``; how both processes ended; and resumed runs."""
    root = tmp_path_factory.mktemp("runs")
    jobs = {
        name: Job(root / f"{name}-two", [*COMMON, *overrides], "pretrain" if name == "pretrain" else "train")
        for name, overrides in SETTINGS.items()
    }
    short = [*COMMON, *SETTINGS["everything"], "grpo.num_iterations=1"]
    jobs |= {fault: Job(root / fault, [*COMMON, "grpo.num_iterations=1"], fault=fault) for fault in FAULTS}
    jobs["212"] = Job(root / "212", short)
    endings = dict(zip(jobs, run_pair(list(jobs.values()), root), strict=True))
    with one_thread():
        for name in SETTINGS:
            make(name, root / f"{name}-one").train()
        make("everything", root / "12", "grpo.num_iterations=1").train()
        make("everything", root / "212", "grpo.num_iterations=2").train(root / "212")
    again = [Job(root / name, [*COMMON, *SETTINGS["everything"]], resume=True) for name in ("12", "212")]
    endings |= dict(zip(("12", "212"), run_pair(again, root), strict=True))
    return root, endings


def configurations_of(folder):
    """Files of a model folder, with what those of JSON say; PEFT writes a set as a list."""
    files = [path for path in folder.rglob("*") if path.is_file() and "trainer_state" not in path.parts]
    return {
        str(path.relative_to(folder)): {
            key: sorted(value) if key == "target_modules" else value
            for key, value in (json.loads(path.read_text()) if path.suffix == ".json" else {}).items()
        }
        for path in files
    }


def assert_same_metrics(rows, expected):
    assert len(rows) == len(expected) == 3
    for row, other in zip(rows, expected, strict=True):
        assert row == pytest.approx(other, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("name", EXACT)
def test_training(runs, name):
    root, endings = runs
    for ending in endings[name]:
        assert "error" not in ending
    assert endings[name][0]["history"] == endings[name][1]["history"]
    assert endings[name][0]["after"] == endings[name][1]["after"]
    assert_same_metrics(metrics_of(root / f"{name}-two"), metrics_of(root / f"{name}-one"))


@pytest.mark.parametrize("name", EXACT)
def test_the_saved_folder_is_that_of_one_process(runs, name):
    root, _ = runs
    ours, theirs = (root / f"{name}-{number}" / "checkpoints" / "latest" for number in ("two", "one"))

    assert configurations_of(ours) == configurations_of(theirs)
    weights, expected = weights_of(root / f"{name}-two"), weights_of(root / f"{name}-one")
    assert relative_distance(weights, expected) < 1e-5
    if "adapters" in name:
        adapters = [load_file(path / "adapter" / "adapter_model.safetensors") for path in (ours, theirs)]
        assert relative_distance(*adapters) < 1e-5
    else:  # what training has changed, in its own scale
        start = make_model(make_config(root, *COMMON, *SETTINGS[name])).state_dict()
        ours, theirs = ({key: value - start[key] for key, value in each.items()} for each in (weights, expected))
        assert relative_distance(ours, theirs) < 1e-2


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_half_precision(runs, name):
    """Weights are gathered in it, norms too, unlike autocast's: the same up to its rounding."""
    root, endings = runs
    assert "error" not in endings[name][0]
    for row, other in zip(metrics_of(root / f"{name}-two"), metrics_of(root / f"{name}-one"), strict=True):
        for key in ("reward_mean", "reward_std", "grad_norm"):
            assert row[key] == pytest.approx(other[key], rel=0.05, abs=1e-3)


@pytest.mark.parametrize("name", SETTINGS)
def test_every_process_has_half_of_the_weights(runs, name):
    _, endings = runs
    for ending in endings[name]:
        if name != "pretrain":  # its instruction encoder is trained, and whole
            assert ending["num_own"] == pytest.approx(ending["num_weights"] / 2, rel=0.01)
        assert ending["num_own"] < 0.6 * ending["num_weights"]


@pytest.mark.parametrize("name", ["12", "212"])
def test_another_number_of_processes_resumes(runs, name):
    """One goes on as two; two go on as one, and as two again."""
    root, endings = runs
    assert [ending.get("error") for ending in endings[name]] == [None, None]
    last, expected = metrics_of(root / name)[-1], metrics_of(root / "everything-one")[-1]
    assert last == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert relative_distance(weights_of(root / name), weights_of(root / "everything-one")) < 1e-5


@pytest.mark.parametrize("fault", FAULTS)
def test_both_fail_where_one_fails(runs, fault):
    root, endings = runs
    for ending in endings[fault]:
        with pytest.raises(RuntimeError, match=FAULTS[fault]):
            raise RuntimeError(ending["error"])
    assert (Checkpoints(root / fault / "checkpoints").latest is None) == (fault in ("shards", "model"))
    assert not list((root / fault / "checkpoints").glob(".*"))


def test_a_checkpoint_of_shards_holds_no_pickle(runs):
    root, _ = runs
    checkpoint = root / "everything-two" / "checkpoints" / "latest"
    names = {path.suffix for path in checkpoint.rglob("*") if path.is_file()}
    assert names == {".json", ".safetensors"}
    assert len(list((checkpoint / "trainer_state" / "shards").iterdir())) > 8  # of two processes
    assert json.loads((checkpoint / "trainer_state" / "state.json").read_text())["weights"] == []


def test_shards_of_another_model_are_refused(runs, tmp_path):
    root, _ = runs
    trainer = make("everything", tmp_path)
    trainer.optimizer.names[0] = "transformer.other.weight"
    checkpoint = Checkpoints(root / "everything-two" / "checkpoints").latest
    with pytest.raises(ValueError, match=r"they differ in transformer\..*model\.\* settings"):
        trainer.optimizer._load_shards(checkpoint / "trainer_state" / "shards")


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_damaged_shards_are_named(runs, tmp_path, damage):
    root, _ = runs
    checkpoint = Checkpoints(root / "everything-two" / "checkpoints").latest
    shards = shutil.copytree(checkpoint / "trainer_state" / "shards", tmp_path / "shards")
    path = sorted(shards.iterdir())[-1]
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match=f"checkpoint {shards} cannot be read") as caught:
        make("everything", tmp_path / "run").optimizer._load_shards(shards)
    assert "\n" not in str(caught.value)


def test_blocks():
    for backbone, num_blocks in (([], 5), (WAN, 2)):
        network = make_model(make_config("unused", *backbone)).denoiser_network
        assert len(sharding.blocks_of(network)) == num_blocks


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("FSDP_VERSION", "1", "FSDP with FSDP_VERSION=1, expected 2: start the run with `accelerate launch --use_fsdp"),
        ("FSDP_VERSION", None, "FSDP with FSDP_VERSION=1, expected 2"),
        ("FSDP_OFFLOAD_PARAMS", "true", "FSDP_OFFLOAD_PARAMS=true, expected false"),
        ("FSDP_RESHARD_AFTER_FORWARD", "false", "FSDP_RESHARD_AFTER_FORWARD=false, expected true"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true", r"expected false: set model\.gradient_checkpointing=true instead"),
    ],
)
def test_settings_of_fsdp_are_refused_by_name(monkeypatch, variable, value, words):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    if value is None:
        monkeypatch.delenv(variable)
    else:
        monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=words) as caught:
        new_accelerator()
    assert "\n" not in str(caught.value)


def test_one_process_is_not_sharded(monkeypatch, tmp_path):
    """Nor does accelerate hear of FSDP; transformers loads all weights on every process."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    trainer = make_trainer(make_config(tmp_path))
    assert not sharding.is_sharded(trainer.model.denoiser_network) and not trainer.optimizer.is_sharded
    assert getattr(trainer.accelerator.state, "fsdp_plugin", None) is None
    assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false" and os.environ["ACCELERATE_USE_FSDP"] == "true"


def test_what_accelerate_launch_sets_is_accepted(monkeypatch):
    command = ["--multi_gpu", "--num_processes", "2", "--use_fsdp", "--fsdp_version", "2", "script.py"]
    arguments = launch_command_parser().parse_args(command)
    arguments.mixed_precision, arguments.dynamo_backend = "no", "no"  # as the command itself does
    arguments.num_machines, arguments.machine_rank = 1, 0
    for variable, value in prepare_multi_gpu_env(arguments).items():
        if variable.startswith(("FSDP_", "ACCELERATE_")):
            monkeypatch.setenv(variable, value)
    assert os.environ["FSDP_VERSION"] == "2" and launcher_shards()
    new_accelerator()


@pytest.mark.parametrize("setting", ["sampler.tail_dtype=float8", "model.compile=true"])
def test_what_needs_whole_weights_is_refused(monkeypatch, tmp_path, setting):
    monkeypatch.setattr(sharding, "is_sharding", lambda accelerator: True)
    name = setting.partition("=")[0]
    with pytest.raises(ConfigError, match=f"{name} is .* with FSDP, expected"):
        sharding.check_sharding(make_config(tmp_path, setting), new_accelerator())


def test_part_of_a_tensor_that_is_whole():
    whole = torch.randn(3, 2)
    assert sharding.part_of(whole, torch.nn.Parameter(torch.zeros(3, 2))) is whole
