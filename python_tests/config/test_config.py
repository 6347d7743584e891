"""Configuration: what is read is what was meant, and anything else is refused in one clear line."""

import dataclasses
import typing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vampo_core.config import (
    ConfigError,
    DataConfig,
    GRPOConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    SamplerConfig,
    VampoConfig,
    deciding,
    load_config,
    presets,
    resumed,
    roles,
)
from vampo_core.config.meaning import meanings
from vampo_core.config.vampo import REMOVED, keys

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "my.yaml"
        path.write_text(text)
        return path

    return write


EIGHT_STEPS = ("sampler.num_inference_steps=8", "sampler.sigma_min=0.002")


def refusal(config, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(config, *overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_preset_pusht_differs_from_the_default_in_how_it_samples_and_how_fast_it_learns():
    preset, default = load_config("pusht").to_dict(), VampoConfig().to_dict()
    changed = {
        f"{name}.{key}" for name, section in preset.items() for key in section if section[key] != default[name][key]
    }
    sampling = {
        f"sampler.{name}" for name in ("num_inference_steps", "sigma_min", "sigma_max", "rho", "guidance_scale")
    } | {"grpo.num_generations"}
    lengths = {"grpo.num_iterations", "pretrain.num_steps"}
    data = {"data.env", "data.root", "data.num_episodes", "data.stride", "run.dir"}
    speed = {"optim.lr", "optim.decay_steps", "pretrain.lr", "pretrain.decay_steps", "pretrain.ema_decay"}
    assert changed == sampling | lengths | speed | data


def test_every_preset_is_valid(monkeypatch):
    monkeypatch.setenv("VAMPO_REAL_DATA", "/videos")
    assert presets() == sorted(path.stem for path in (REPOSITORY / "configs").glob("*.yaml"))
    assert presets() == ["bridge", "demo", "metaworld", "pusht"]
    for name in presets():
        assert load_config(name) == load_config(REPOSITORY / "configs" / f"{name}.yaml")
    assert load_config("bridge").data.root == "/videos/bridge"


def test_a_missing_environment_variable_is_named_unless_the_path_is_overridden(monkeypatch):
    monkeypatch.delenv("VAMPO_REAL_DATA", raising=False)
    message = refusal("bridge")
    assert "data.root" in message and "$VAMPO_REAL_DATA" in message
    assert load_config("bridge", "data.root=/elsewhere").data.root == "/elsewhere"


def test_overrides_win_over_the_file_and_later_ones_over_earlier_ones(write):
    path = write("grpo: {num_generations: 4, batch_size: 2}\noptim:\n")
    config = load_config(path, "grpo.num_generations=6", "optim.lr=1e-4", "grpo.num_generations=10")
    assert config.grpo == GRPOConfig(num_generations=10, batch_size=2)
    assert config.optim == OptimConfig(lr=1e-4)
    assert load_config(config, "model.dtype=bfloat16").grpo is not None
    assert load_config(config, "model.dtype=bfloat16") == dataclasses.replace(
        config, model=ModelConfig(dtype="bfloat16")
    )


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optim.lr=1e-4", 1e-4),
        ("optim.lr=3E-5", 3e-5),
        ("optim.lr=1", 1.0),
        ("optim.lr=.5", 0.5),
        ("sampler.stochastic_steps=[2, 0, 2]", (0, 2)),
        ("sampler.tail_chunk_size=null", None),
        ("sampler.tail_chunk_size=7", 7),
        ("grpo.reuse_first_step=false", False),
        ("run.trackers=[wandb, tensorboard]", ("wandb", "tensorboard")),
        ("run.dir=2026-01-31", "2026-01-31"),
        ("run.dir='7'", "7"),
        ("run.dir=7", "7"),
        ("run.dir=a=b", "a=b"),
        ("run.dir=runs/a #2", "runs/a #2"),
        ("run.dir=runs: a", "runs: a"),
        ("data.root=/videos/a#b", "/videos/a#b"),
        ("data.env=null", None),
        ("data.env=", None),
        ("closed_loop.env=pusht", "pusht"),
    ],
)
def test_values_of_overrides(override, expected):
    section, _, name = override.partition("=")[0].partition(".")
    value = getattr(getattr(load_config("pusht", *EIGHT_STEPS, override), section), name)
    assert value == expected and type(value) is type(expected)


def test_paths_are_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("MODELS", "/models")
    config = load_config("pusht", "run.dir=~/runs", "model.pretrained=${MODELS}/svd", "model.text_encoder=$MODELS/clip")
    assert config.run.dir == "/home/me/runs"
    assert (config.model.pretrained, config.model.text_encoder) == ("/models/svd", "/models/clip")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("grpo.num_generation=8", ["unknown key grpo.num_generation", "did you mean 'grpo.num_generations'"]),
        ("grpo.lr=1", ["unknown key grpo.lr", "did you mean 'optim.lr'"]),
        ("grpo.a.b=1", ["unknown key grpo.a.b"]),
        ("gpro.num_generations=8", ["unknown section gpro", "did you mean 'grpo'"]),
        ("num_generations=8", ["'num_generations=8'", "section.key=value", "did you mean 'grpo.num_generations'"]),
        ("grpo.num_generations", ["'grpo.num_generations'", "section.key=value"]),
        ("grpo.num_generations=eight", ["grpo.num_generations", "'eight'", "an integer"]),
        ("grpo.num_generations=8.0", ["grpo.num_generations", "8.0", "an integer"]),
        ("grpo.num_generations=true", ["grpo.num_generations", "True", "an integer"]),
        ("grpo.num_generations=", ["grpo.num_generations", "None", "an integer"]),
        ("grpo.num_generations=1", ["grpo.num_generations", "1", "at least 2"]),
        ("grpo.clip_range=0", ["grpo.clip_range", "0.0", "above 0"]),
        ("grpo.kl_coef=-0.1", ["grpo.kl_coef", "-0.1", "at least 0"]),
        ("grpo.kl_coef=.nan", ["grpo.kl_coef", "nan", "finite"]),
        ("optim.lr=.inf", ["optim.lr", "inf", "finite"]),
        ("optim.lr=fast", ["optim.lr", "'fast'", "a number"]),
        ("optim.beta2=1", ["optim.beta2", "1.0", "below 1"]),
        ("optim.gradient_accumulation_steps=9", ["optim.gradient_accumulation_steps", "9", "grpo.batch_size = 8"]),
        ("grpo.reuse_first_step=1", ["grpo.reuse_first_step", "1", "true or false"]),
        ("model.dtype=bf16", ["model.dtype", "'bf16'", "float32, bfloat16, float16"]),
        ("model.block_out_channels=[64, 65]", ["model.block_out_channels[1]", "65", "above 0 that 32 divides"]),
        ("model.block_out_channels=[64]", ["model.block_out_channels", "at least 2"]),
        ("model.num_attention_heads=5", ["model.num_attention_heads", "5", "divisor"]),
        ("sampler.stochastic_steps=0", ["sampler.stochastic_steps", "0", "a list"]),
        ("sampler.stochastic_steps=[7]", ["sampler.stochastic_steps", "[7]", "= 6"]),
        ("sampler.stochastic_steps=[-1]", ["sampler.stochastic_steps[0]", "-1", "at least 0"]),
        ("sampler.stochastic_steps=[]", ["sampler.stochastic_steps", "[]", "at least one"]),
        ("sampler.eta=0", ["sampler.eta", "0.0", "above 0"]),
        ("sampler.sigma_max=0.001", ["sampler.sigma_min", "0.002", "sampler.sigma_max = 0.001"]),
        ("data.held_out_fraction=1", ["data.held_out_fraction", "1.0", "below 1"]),
        ("data.format=vpp", ["data.env", "'pusht'", "null"]),
        ("data.format=hdf5", ["data.format", "'hdf5'", "recorded, vpp, lerobot"]),
        ("data.resolution=60", ["data.resolution", "60", "multiple of 16"]),
        ("data.resolution=wide", ["data.resolution", "'wide'", "an integer"]),
        ("data.resolution=[64, 0]", ["data.resolution[1]", "0", "at least 1"]),
        ("data.resolution=[64, 96]", ["data.resolution", "[64, 96]", "one number", "pusht"]),
        ("data.root=''", ["data.root", "''", "a folder"]),
        ("sampler.antithetic=true", ["sampler.antithetic", "True", "removed", "False"]),
        ("sampler.shared_noise=false", ["sampler.shared_noise", "False", "removed", "True"]),
        ("data.steps_after_success=5", ["data.steps_after_success", "5", "removed", "0"]),
        ("pretrain.condition_dropout=1", ["pretrain.condition_dropout", "1.0", "below 1"]),
        ("run.seed=-1", ["run.seed", "-1", "at least 0"]),
        ("run.trackers=[tensorbord]", ["run.trackers[0]", "'tensorbord'", "did you mean 'tensorboard'"]),
        ("run.trackers=[a", ["'run.trackers=[a'", "YAML"]),
        ("reward.l1_weight=-1", ["reward.l1_weight", "-1", "at least 0"]),
    ],
)  # fmt: skip
def test_a_wrong_override_is_one_line_with_key_value_and_expectation(override, words):
    message = refusal("pusht", *EIGHT_STEPS, override)
    assert [word for word in words if word not in message] == [], message


def test_checks_across_keys():
    assert "above 0" in refusal("pusht", "reward.l1_weight=0", "reward.cosine_weight=0")
    fewer = refusal("pusht", "sampler.num_inference_steps=4", "sampler.stochastic_steps=[0, 3]")
    assert "[0, 3]" in fewer and "= 2" in fewer


def test_a_predictor_keeps_its_own_sampler_where_nothing_is_set():
    kept = {"eta": 1.0, "stochastic_steps": (0,)}
    assert load_config(VampoConfig()).sampler.overrides() == kept
    set_ = load_config(
        VampoConfig(), "sampler.guidance_scale=2", "sampler.sigma_max=700", "sampler.stochastic_steps=[9]"
    )
    assert set_.sampler.overrides() == kept | {
        "guidance_scale": 2.0, "min_guidance_scale": 1.0, "sigma_max": 700.0, "stochastic_steps": (9,),
    }  # fmt: skip
    assert "at least one" in refusal("pusht", "sampler.num_inference_steps=null", "sampler.stochastic_steps=[]")


def test_frames_need_not_be_square():
    config = load_config("pusht", "data.env=null", "data.resolution=[32, 64]")
    assert config.data.image_size == (32, 64) and load_config(config).data == config.data
    assert load_config("pusht").data.image_size == (64, 64)
    assert "[height, width]" in refusal("pusht", "data.env=null", "data.resolution=[64]")
    assert "multiple of 16" in refusal("pusht", "data.env=null", "data.resolution=[32, 60]")


def test_several_folders_of_data(monkeypatch):
    monkeypatch.setenv("VIDEOS", "/videos")
    several = ["data.env=null", "data.root=[$VIDEOS/a, /b]"]
    data = load_config("pusht", *several, "data.weights=[1, 2.5]").data
    assert data.roots == ("/videos/a", "/b") and data.weights == (1.0, 2.5)
    assert load_config("pusht").data.roots == ("data/pusht",)
    for overrides, words in (
        ((*several, "data.weights=[1]"), ["data.weights", "[1.0]", "2"]),
        ((*several, "data.weights=[1, 0]"), ["data.weights[1]", "above 0"]),
        (("data.root=[a, b]",), ["data.root", "'pusht'", "one folder"]),
        (("data.env=null", "data.root=[a/x, b/x]"), ["data.root", "different names"]),
        (("data.env=null", "data.root=[]"), ["data.root", "[]", "folders"]),
        (("data.env=null", "data.root=[a, '']"), ["data.root[1]", "''", "a folder"]),
        (("data.env=null", "data.root=[a, $NOWHERE/b]"), ["data.root[1]", "$NOWHERE"]),
    ):
        message = refusal("pusht", *overrides)
        assert [word for word in words if word not in message] == [], message


def test_sections_check_themselves():
    for section, arguments in (
        (GRPOConfig, {"num_generations": 1}),
        (SamplerConfig, {"rho": "7"}),
        (RunConfig, {"dir": 7}),
    ):
        with pytest.raises(ConfigError, match=next(iter(arguments))):
            section(**arguments)
    with pytest.raises(ConfigError, match="grpo is a dict, expected a GRPOConfig"):
        VampoConfig(grpo={"num_generations": 4})
    assert type(OptimConfig(lr=1).lr) is float
    with pytest.raises(dataclasses.FrozenInstanceError):
        GRPOConfig().num_generations = 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("grpo: {num_generations: 4, num_generations: 8}", ["line 1", "num_generations", "twice"]),
        ("grpo:\n  num_generations: 4\ngrpo:\n  batch_size: 2\n", ["line 3", "grpo", "twice"]),
        ("- grpo", ["['grpo']", "sections"]),
        ("grpo: 4", ["grpo is 4", "num_generations"]),
        ("7: {}", ["unknown section 7"]),
        ("grpo: {7: 1}", ["unknown key grpo.7"]),
        ("grpo: {batch_size: 2", ["line 1", "YAML"]),
        ("grpo: {batch_size: !!python/object:os.system 2}", ["YAML", "python/object"]),
        ("grpo:\n\tbatch_size: 2", ["line 2", "YAML"]),
        ("run: {dir: \x07}", ["YAML"]),
    ],
)
def test_a_wrong_file_is_one_line_that_names_it(write, text, words):
    path = write(text)
    message = refusal(path)
    assert [word for word in words if word not in message] == [], message
    assert "sections" in message or "grpo" in message or str(path) in message or "section 7" in message


def test_a_config_that_is_not_there():
    message = refusal("pushtt")
    assert "'pushtt'" in message and "bridge, demo, metaworld, pusht" in message and "did you mean 'pusht'" in message
    assert "'/nowhere/my.yaml'" in refusal("/nowhere/my.yaml")
    assert "NoneType" in refusal(None)


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "weights.yaml").write_bytes(b"\xff\xfe\x00\x80")
    assert "weights.yaml" in refusal(tmp_path / "weights.yaml")


def test_an_empty_file_is_the_default(write):
    assert load_config(write("# nothing yet\n")) == VampoConfig()


def test_a_run_folder_stands_for_its_config_wherever_it_is_now(tmp_path, monkeypatch):
    config = load_config("pusht", "run.seed=3", f"run.dir={tmp_path}")
    config.save(tmp_path / "config.yaml")
    assert load_config(tmp_path) == load_config(str(tmp_path)) == config
    monkeypatch.chdir(tmp_path.parent)
    assert load_config(tmp_path.name) == config
    (tmp_path.parent / "pusht").mkdir(exist_ok=True)
    assert load_config("pusht").run.dir == "runs/pusht"  # a preset's name comes first
    load_config(config, "run.dir=runs/elsewhere").save(tmp_path / "config.yaml")  # it was moved, or copied
    assert load_config(tmp_path) == config
    assert load_config(tmp_path, "run.dir=new").run.dir == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


TEXTS = st.text(st.characters(exclude_characters="$~", exclude_categories=("Cs",)), min_size=1)


@given(
    lr=st.floats(1e-300, 1e300),
    steps=st.sets(st.integers(0, 6), min_size=1),
    text=TEXTS | st.sampled_from(["1e-4", "010", "1_000", "yes", "null", "2026-01-31", "1:30", ".inf", "-.5", " a "]),
    chunk=st.none() | st.integers(1, 9),
    strict=st.booleans(),
)  # fmt: skip
def test_yaml_round_trip_is_exact(lr, steps, text, chunk, strict, tmp_path_factory):
    config = VampoConfig(
        optim=OptimConfig(lr=lr),
        sampler=SamplerConfig(stochastic_steps=tuple(steps), tail_chunk_size=chunk),
        data=DataConfig(strict=strict),
        run=RunConfig(dir=text),
    )
    path = tmp_path_factory.getbasetemp() / "round_trip.yaml"
    config.save(path)
    again = load_config(path)
    assert again == config
    assert again.to_yaml() == config.to_yaml() == path.read_text()


def test_every_setting_has_a_meaning_and_a_role():
    sections = typing.get_type_hints(VampoConfig)
    for name, section in sections.items():
        missing = {field.name for field in dataclasses.fields(section)} - meanings(section).keys()
        assert not missing, (name, missing)
    assert list(roles()) == keys()
    assert {key for key, role in roles().items() if role.is_path} == {
        "data.root", "data.cache", "model.pretrained", "model.text_encoder", "policy.predictor",
        "reward.action_decoder", "run.dir",
    }  # fmt: skip


SINCE = {
    "metaworld": [
        *("grpo.num_iterations=50", "grpo.batch_size=8", "grpo.num_generations=16", "grpo.credit=frame"),
        *("reward.l1_weight=1", "reward.cosine_weight=1", "reward.action_weight=0", "evaluation.best_by=reward"),
        *("optim.lr=4e-5", "optim.warmup_steps=0", "optim.decay_steps=50", "model.ema_decay=0"),
        *("run.eval_every=10", "run.save_every=10"),
    ],
}
"""What presets chose otherwise when the files were written."""


@pytest.mark.parametrize("preset", ["bridge", "metaworld", "pusht"])
def test_configurations_of_older_runs_still_load(preset, monkeypatch):
    """Files in ``saved`` were written before defaults changed and settings went; runs go on with what they began."""
    monkeypatch.setenv("VAMPO_REAL_DATA", "/videos")
    saved = Path(__file__).parent / "saved" / f"{preset}.yaml"
    assert any(key.partition(".")[2] in saved.read_text() for key in REMOVED)
    assert load_config(saved) == load_config(preset, *SINCE.get(preset, []))


def test_products_depend_on_the_settings_that_decide_them():
    config = load_config("pusht")
    assert deciding(load_config(config, "run.dir=elsewhere", "closed_loop.num_episodes=3"), "policy") == deciding(
        config, "policy"
    )
    for override, products in {
        "data.stride=2": {"data", "base", "evaluation", "vampo", "policy"},
        "pretrain.lr=1": {"base"},
        "model.layers_per_block=2": {"base", "vampo"},
        "grpo.kl_coef=1": {"vampo"},
        "policy.lr=1": {"policy"},
        "evaluation.seed=7": {"evaluation", "vampo", "policy"},
        "closed_loop.seed=7": set(),
    }.items():
        other = load_config(config, override)
        every = ("data", "base", "evaluation", "vampo", "policy")
        assert {product for product in every if deciding(other, product) != deciding(config, product)} == products


def test_a_null_noise_level_is_the_samplers_where_a_base_is_decided():
    config = load_config("pusht", "sampler.sigma_max=null")
    assert deciding(config, "base") == deciding(load_config("pusht", "sampler.sigma_max=80"), "base")


def test_a_run_goes_on_with_its_own_settings_except_for_how_it_is_made():
    own = load_config("pusht", "grpo.kl_coef=0.5", "run.num_threads=1")
    asked = load_config("pusht", "optim.lr=1", "run.num_threads=2", "closed_loop.num_episodes=3")
    assert resumed(asked, own) == load_config(own, "run.num_threads=2", "closed_loop.num_episodes=3")


def test_policies_act_in_the_simulator_of_the_data_or_in_another():
    assert VampoConfig().simulator is None
    assert load_config("pusht").simulator == "pusht"
    other = load_config("pusht", "closed_loop.env=metaworld/reach")
    assert other.simulator == "metaworld/reach" and other.data.env == "pusht"
    videos = load_config("pusht", "data.env=null", "data.format=vpp", "closed_loop.env=pusht")
    assert videos.simulator == "pusht"


def test_the_sampler_and_unet_get_what_was_set():
    config = load_config("pusht", "sampler.eta=0.5", "model.block_out_channels=[32, 64, 96]")
    overrides = config.sampler.overrides()
    assert overrides["eta"] == 0.5
    options = config.model.network_options()
    assert len(options["down_block_types"]) == len(options["up_block_types"]) == 3
    assert options["block_out_channels"] == (32, 64, 96)
