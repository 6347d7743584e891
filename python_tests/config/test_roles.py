"""What every setting means for a run: the products that it decides, whether it may change, whether it is a path."""

import dataclasses

import pytest

from vampo_core.config import ConfigError, VampoConfig, deciding, load_config, resumed, roles
from vampo_core.config.vampo import keys, stored_with
from vampo_core.diffusion.sampler import EulerHybridSampler
from vampo_core.diffusion.settings import EulerHybridSettings
from vampo_core.policy.vpp.settings import VPPSettings


def all_of(*names: str) -> set[str]:
    """Every key of some sections."""
    return {key for key in keys() if key.split(".")[0] in names}


DATA = {
    *("data.format", "data.root", "data.weights", "data.env", "data.num_episodes", "data.action_noise"),
    *("data.camera", "data.state", "data.action", "data.resolution"),
    *("data.held_out_fraction", "data.num_frames", "data.stride", "data.sampling"),
}
DECODER = {*all_of("decoder"), "policy.num_episodes"}
CHOOSING = {"evaluation.action_error", "evaluation.best_by", "evaluation.cheap_tail"}
"""What only chooses a checkpoint."""
EVALUATION = {*DATA, *all_of("evaluation"), "run.seed"} - CHOOSING
DECIDING = {
    "data": DATA,
    "codec": {"model.patch_size", "model.latent_channels", "data.resolution"},
    "base": {
        *DATA,
        *all_of("pretrain"),
        *("model.block_out_channels", "model.layers_per_block", "model.num_attention_heads", "model.dtype"),
        *("model.backbone", "model.num_layers", "sampler.flow_shift", "sampler.sigma_max", "run.seed"),
    },
    "evaluation": EVALUATION,
    "decoder": {*DATA, *DECODER},
    "vampo": {
        *EVALUATION,
        *CHOOSING,
        *all_of("grpo", "sampler", "reward", "optim", "model"),
        *DECODER,
        "run.eval_every",
    }
    - {"model.pretrained", "model.compile"},
    "policy": {*EVALUATION, *DECODER, *all_of("policy")} - {"policy.predictor"},
}
LENGTHS = {
    "grpo.num_iterations": "optim.decay_steps",
    "pretrain.num_steps": "pretrain.decay_steps",
    "policy.num_steps": "policy.decay_steps",
}


LATER = {
    "data.camera": "front",
    "data.state": "joints",
    "data.action": "torques",
    "model.backbone": "wan",
    "model.num_layers": 3,
    "sampler.flow_shift": 2.0,
}
"""Settings that came after products were named, each with another value than its default."""


@pytest.mark.parametrize("product", DECIDING)
def test_exactly_these_settings_decide_a_product(product):
    assert {key for key, role in roles().items() if role.is_later} == LATER.keys()
    assert deciding(load_config("pusht"), product).keys() == DECIDING[product] - LATER.keys()
    levels = [f"sampler.{name}=null" for name in ("sigma_min", "sigma_max", "rho")]
    camera = ["data.format=lerobot", "data.env=null"]
    changed = load_config("pusht", *levels, *camera, *(f"{key}={value}" for key, value in LATER.items()))
    assert deciding(changed, product).keys() == DECIDING[product]


def test_exactly_these_settings_may_change_when_a_run_is_resumed():
    assert {key for key, role in roles().items() if role.may_change} == {
        *LENGTHS,
        *("pretrain.eval_every", "pretrain.save_every", "policy.eval_every", "policy.save_every"),
        *("data.root", "data.cache", "data.num_workers", "sampler.tail_chunk_size", "model.compile"),
        *(all_of("run") - {"run.seed"}),
        *all_of("closed_loop", "chain"),
    }
    assert {key: role.unless for key, role in roles().items() if role.unless} == LENGTHS
    assert set(LENGTHS.values()) <= set(keys())


def test_an_unfinished_run_keeps_its_length():
    own = load_config("pusht", "grpo.num_iterations=7", "run.save_every=2")
    now = load_config("pusht", "grpo.num_iterations=9", "run.save_every=3")
    assert resumed(now, own) == load_config(own, "run.save_every=3")


def test_what_is_null_in_a_post_training_is_the_predictors_own():
    unset, set_ = (load_config("pusht", f"sampler.sigma_max={value}") for value in ("null", "80"))
    assert deciding(unset, "vampo") != deciding(set_, "vampo")


def test_a_policy_stores_the_settings_that_its_folder_has():
    config = load_config("pusht", "policy.width=32")
    names = {field.name for field in dataclasses.fields(VPPSettings)}
    stored = stored_with(config, "policy")
    assert stored.keys() == names & {field.name for field in dataclasses.fields(config.policy)}
    assert stored["width"] == 32 and "lr" not in stored


def test_the_sampler_refuses_what_the_section_refuses():
    """Names and ranges of the section are those of the sampler."""
    names = {field.name for field in dataclasses.fields(VampoConfig().sampler)} - {"tail_chunk_size", "tail_dtype"}
    assert names <= {field.name for field in dataclasses.fields(EulerHybridSettings)}
    for name in sorted(names - {"stochastic_steps", "solver"}):
        too_small = {"num_inference_steps": 1, "tail_steps": -1}.get(name, -1.0)
        for settings in (EulerHybridSettings, type(VampoConfig().sampler)):
            with pytest.raises(ValueError, match=name):
                settings(**{name: too_small})
    for settings in (EulerHybridSampler, type(VampoConfig().sampler)):
        with pytest.raises(ValueError, match=r"solver is 'heun', expected one of euler, dpm\+\+2m, unipc"):
            settings(solver="heun")


def test_a_missing_key_takes_its_default_also_where_its_section_is_there(tmp_path):
    path = tmp_path / "part.yaml"
    path.write_text("data: {stride: 5}\nmodel: {lora: 2}\nclosed_loop:\nrun: {seed: 3}\npolicy: {width: 32}\n")
    expected = load_config(VampoConfig(), "data.stride=5", "model.lora=2", "run.seed=3", "policy.width=32")
    assert load_config(path) == expected


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("run.dir=[a", "[a"),
        ("run.dir=runs/[a]: {b", "runs/[a]: {b"),
        ("run.dir='null'", "null"),
        ("data.root=2026-11-26T10:30:00", "2026-11-26T10:30:00"),
        ("data.root=[a, b #2]", ("a", "b #2")),
        ("model.pretrained=1e3", "1e3"),
        ("model.pretrained=true", "true"),
    ],
)
def test_a_text_stands_for_itself_except_for_null_quotes_and_lists(override, value):
    if override.startswith("data.root=["):  # YAML, where ' #' begins a comment
        with pytest.raises(ConfigError, match="cannot be read as YAML"):
            load_config("pusht", "data.env=null", override)
        override = "data.root=[a, 'b #2']"
    section, _, name = override.partition("=")[0].partition(".")
    assert getattr(getattr(load_config("pusht", "data.env=null", override), section), name) == value


def test_simulators_render_squares_also_where_only_policies_act():
    videos = ["data.format=vpp", "data.env=null", "data.root=/videos", "data.resolution=[64, 96]"]
    assert load_config("pusht", *videos).data.image_size == (64, 96)
    with pytest.raises(ConfigError, match=r"data\.resolution is \[64, 96\], expected one number: pusht renders"):
        load_config("pusht", *videos, "closed_loop.env=pusht")
