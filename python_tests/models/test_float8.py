"""Float8 behind the split, computed for real: torch multiplies float8 matrices on the CPU too."""

import importlib.util
from types import SimpleNamespace

import pytest
import torch
from training_runs import gradient_of, make_config, make_model, make_trainer, relative_distance

from vampo_core.config import ConfigError, load_config
from vampo_core.models import float8, lora
from vampo_core.models.float8 import Float8Copy, Float8Linear, check_float8
from vampo_core.pipeline import chain, runs

needs_torchao = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")
FLOAT8 = "sampler.tail_dtype=float8"
CPU = torch.device("cpu")


@pytest.fixture
def allowed(monkeypatch):
    """A trainer takes this device; what runs on it is the real thing."""
    monkeypatch.setattr("vampo_core.grpo.trainer.check_float8", lambda device: None)


@pytest.fixture
def quantized(monkeypatch):
    """Layers in the order in which they are quantized."""
    layers, original = [], Float8Linear._quantized
    monkeypatch.setattr(Float8Linear, "_quantized", lambda self: layers.append(self) or original(self))
    return layers


def layers_of(model) -> list[Float8Linear]:
    return [module for module in model.denoiser_network.modules() if isinstance(module, Float8Linear)]


@needs_torchao
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_computes_what_its_source_computes_row_by_row(bias):
    torch.manual_seed(0)
    source = torch.nn.Linear(64, 32, bias=bias)
    with torch.no_grad():
        source.weight[3] = 0  # as layers that begin with zeros have
    rows = torch.randn(5, 7, 64)
    rows[1, 2] = 0  # as the unconditional half of guidance has
    layer = Float8Linear(source)
    with torch.inference_mode():
        output = layer(rows)
    assert output.dtype == torch.bfloat16 and output.isfinite().all()
    assert 0.005 < relative_distance({"": output.float()}, {"": source(rows).detach()}) < 0.06
    assert torch.equal(layer(rows[2:3]), output[2:3]), "chunks and processes change nothing"


@needs_torchao
@pytest.mark.parametrize("adapters", [0, 4])
def test_the_copy_shares_everything_but_linear_layers(adapters):
    model = make_model(make_config("unused", f"model.lora={adapters}"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modules = [type(module) for module in model.modules()]
    copied = Float8Copy(model).updated()
    assert layers_of(copied) and not lora.has_adapter(copied.denoiser_network)
    ours, theirs = (dict(m.denoiser_network.named_parameters()) for m in (model, copied))
    assert theirs and all(value is ours[name] for name, value in theirs.items())
    left = {id(layer._source[0]) for layer in layers_of(copied)}
    assert left == {id(layer) for layer in float8._linear_layers(model.denoiser_network)}
    assert [type(module) for module in model.modules()] == modules
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_sizes_that_float8_does_not_take_stay_as_they_are_and_so_do_their_adapters():
    network = torch.nn.Sequential(torch.nn.Linear(24, 16), torch.nn.Sequential(torch.nn.Linear(16, 24)))
    assert list(float8._linear_layers(network)) == []
    lora.add_adapter(network, 16, 16, ["0"], 0.0)
    assert any(type(module) is torch.nn.Linear and module.in_features == 16 for module in network[0].modules())
    assert list(float8._linear_layers(network)) == []


@needs_torchao
@pytest.mark.parametrize("adapters", [0, 4])
def test_layers_are_quantized_again_where_training_changed_them_and_only_there(tmp_path, allowed, quantized, adapters):
    trainer = make_trainer(
        make_config(tmp_path, FLOAT8, f"model.lora={adapters}", "optim.gradient_accumulation_steps=2")
    )
    batches = trainer.batches(0)
    trainer.iterate(1, batches)
    layers = list(quantized)
    assert layers and len(set(layers)) == len(layers), "once for two parts"
    trainer.iterate(2, batches)
    again = quantized[len(layers) :]
    changed = [layer for layer in layers if not adapters or hasattr(layer._source[0], "base_layer")]
    assert again == changed, "once for two parts, the adapted layers only"
    for layer in layers:
        layer.update()
        fresh, _ = layer._quantized()
        assert torch.equal(layer.weight.dequantize(), fresh.dequantize())
    assert len(changed) == len(layers) or adapters


@needs_torchao
def test_adapters_are_part_of_what_runs():
    model = make_model(make_config("unused", "model.lora=4"))
    layers = [layer for layer in layers_of(Float8Copy(model).updated()) if hasattr(layer._source[0], "base_layer")]
    assert layers
    for layer in layers:
        (source,) = layer._source
        rows = torch.randn(9, source.base_layer.in_features)
        with torch.no_grad():
            adapted, base = source(rows), source.base_layer(rows)
            assert (layer(rows) - adapted).norm() < 0.5 * (layer(rows) - base).norm()


@needs_torchao
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_only_the_tail_is_in_float8(tmp_path, allowed, dtype):
    """Draws, log-probabilities and what the update sees are those of the training weights."""
    rollouts = {}
    for tail in ("null", "float8"):
        trainer = make_trainer(make_config(tmp_path, f"sampler.tail_dtype={tail}", f"model.dtype={dtype}"))
        rollouts[tail] = trainer.engine.rollout(next(trainer.batches(0)), seed=0)
    (plain,), (cheap,) = (rollouts[tail].steps for tail in ("null", "float8"))
    assert torch.equal(plain.prev_sample, cheap.prev_sample) and torch.equal(plain.log_prob, cheap.log_prob)
    latents = [rollouts[tail].latents for tail in ("null", "float8")]
    assert latents[1].dtype == torch.float32
    assert 0 < (latents[1] - latents[0]).norm() < 0.1 * latents[0].norm()


@needs_torchao
@pytest.mark.parametrize("adapters", [0, 4])
def test_training_does_not_notice(tmp_path, allowed, adapters):
    settings = [f"model.lora={adapters}", "grpo.num_iterations=2", "sampler.stochastic_steps=[0,2]"]
    trainer = make_trainer(make_config(tmp_path / "float8", FLOAT8, *settings))
    result = trainer.train()
    assert all(row["ratio_max_dev"] < 1e-4 for row in result.history)
    plain = make_trainer(make_config(tmp_path / "plain", *settings))
    assert plain.optimizer.names == trainer.optimizer.names
    assert plain.model.state_dict().keys() == trainer.model.state_dict().keys()
    assert trainer.optimizer.state_dict().weights.keys() == plain.optimizer.state_dict().weights.keys()
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}


@needs_torchao
def test_the_same_rewards_give_the_same_gradient(tmp_path, allowed):
    constant = [lambda pred, target, batch: torch.arange(pred[..., 0, 0, 0].numel()).view(pred.shape[:3]) % 5.0]
    gradients = [
        gradient_of(make_trainer(make_config(tmp_path, f"sampler.tail_dtype={tail}"), reward_funcs=constant))
        for tail in ("null", "float8")
    ]
    assert relative_distance(*gradients) == 0


def test_what_cannot_run_it_is_named(monkeypatch):
    with pytest.raises(ValueError, match=r"'float8' on the device cpu, expected a GPU with compute capability 8\.9"):
        check_float8(CPU)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(ValueError, match=r"'float8' on NVIDIA A100, compute capability 8.0, expected a GPU"):
        check_float8(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs torchao: `pip install vampo_core\[float8\]`"):
        check_float8(torch.device("cuda"))


def test_it_is_refused_before_any_work(tmp_path, monkeypatch):
    for module in (runs, chain):
        monkeypatch.setattr(module, "new_accelerator", lambda: SimpleNamespace(device=CPU, num_processes=1))
    config = load_config("pusht", FLOAT8, f"run.dir={tmp_path / 'run'}")
    for begin in (
        lambda: make_trainer(config),
        lambda: runs.check_run(runs.VAMPO, config, None),
        lambda: chain.Chain(config, None),
    ):
        with pytest.raises(ValueError, match="'float8' on the device cpu"):
            begin()
    assert runs.check_run(runs.PRETRAINING, config, None) is None, "it has no tail"
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_settings_that_do_not_go_with_it():
    with pytest.raises(ConfigError, match=r"pathwise' with sampler.tail_dtype = 'float8', .* has no derivative"):
        load_config("pusht", FLOAT8, "grpo.credit=pathwise")
    with pytest.raises(ConfigError, match=r"'float8' with model\.dtype = 'float16', expected null, or model"):
        load_config("pusht", FLOAT8, "model.dtype=float16")
    load_config("pusht", FLOAT8, "model.dtype=bfloat16")
    with pytest.raises(ConfigError, match=r"'bfloat16' with model\.dtype = 'bfloat16', expected null"):
        load_config("pusht", "sampler.tail_dtype=bfloat16", "model.dtype=bfloat16")
