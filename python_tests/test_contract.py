"""Names and arguments that users rely on: operators, calls, classes and results. They may grow, but not change."""

import inspect
from dataclasses import fields

import pytest
import torch

import vampo_core
from vampo_core import ops
from vampo_core.ops import reference

REQUIRED = inspect.Parameter.empty
STEP = {"prediction_type": "v_prediction", "model_output_uncond": None, "guidance_scale": None}
SIGMAS = {"sigma": REQUIRED, "sigma_next": REQUIRED}
OPERATORS = {
    "hybrid_euler_step": (
        ["sample", "model_output"],
        {**SIGMAS, "eta": 0.0, **STEP, "num_generations": None, "noise": None, "seed": None, "out": None},
    ),
    "gaussian_log_prob": (
        ["prev_sample", "sample", "model_output"],
        {**SIGMAS, "eta": 1.0, **STEP, "reduction": "mean"},
    ),
    "group_advantages": (["rewards"], {"eps": 1e-8, "clip": None, "normalize_std": True}),
    "latent_reward": (["pred", "target"], {"l1_weight": 1.0, "cosine_weight": 1.0}),
}
"""Positional arguments, and keyword arguments with their defaults."""
CALLS = {
    "load_config": (["config", "*overrides"], {}),
    "train": (["config", "*overrides"], {"resume_from": None, "reward_funcs": None}),
    "pretrain": (["config", "*overrides"], {"resume_from": None}),
    "evaluate": (["checkpoint", "config", "*overrides"], {}),
    "train_policy": (["config", "*overrides"], {"resume_from": None}),
    "evaluate_policy": (["checkpoint", "config", "*overrides"], {"output": None}),
    "run_chain": (["config", "*overrides"], {}),
    "sample": (
        ["checkpoint", "config", "*overrides"],
        {"output": REQUIRED, "image": None, "video": None, "instruction": None, "num_samples": 1, "num_clips": 4},
    ),
    "write_report": (["config"], {}),
    "compare_runs": (["*runs"], {"output": None}),
    "build_info": ([], {}),
    "EulerHybridSampler": (
        [],
        {
            "num_inference_steps": 8, "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0, "schedule": "karras",
            "eta": 1.0, "stochastic_steps": (0,), "prediction_type": "v_prediction", "guidance_scale": 1.0,
            "min_guidance_scale": 1.0, "unit_variance_start": True,
        },
    ),
    "EulerHybridSampler.sample": (
        ["self", "noise", "denoise"], {"seed": None, "chunk_size": None, "first_clip": 0}
    ),
    "EulerHybridSampler.rollout": (
        ["self", "noise", "denoise"],
        {"num_generations": REQUIRED, "seed": REQUIRED, "chunk_size": None, "first_clip": 0},
    ),
    "EulerHybridScheduler": ([], {"eta": 1.0, "stochastic_steps": (0,), "prediction_type": "epsilon"}),
    "EulerHybridScheduler.from_config": ([], {}),
    "EulerHybridScheduler.step": (["self", "model_output", "timestep", "sample"], {"generator": None, "noise": None}),
    "VideoPredictor.from_pretrained": (
        ["folder"], {"text_encoder": None, "settings": None, "dtype": "float32", "variant": None}
    ),
    "VideoPredictor.create": (
        ["codec"], {"num_frames": 8, "sample_size": None, "sigma_max": 80.0, "dtype": "float32"}
    ),
    "VideoPredictor.save_pretrained": (["self", "folder"], {}),
    "VideoPredictor.condition": (["self"], {"instructions": None, "first_frames": None, "first_latents": None}),
    "VideoPredictor.sampler": (["self", "**overrides"], {}),
    "VampoTrainer": (
        [],
        {
            "model": REQUIRED, "config": REQUIRED, "train_dataset": REQUIRED, "eval_dataset": REQUIRED,
            "reward_funcs": None, "callbacks": (),
        },
    ),
    "VampoTrainer.train": (["self"], {"resume_from": None}),
    "Policy.from_pretrained": (["folder"], {"dtype": "float32"}),
    "Policy.save_pretrained": (["self", "folder"], {}),
    "Policy.reset": (["self"], {"seed": 0}),
    "Policy.act": (["self", "observation", "instruction"], {}),
}  # fmt: skip
RESULTS = {
    "TrainResult": {"checkpoint", "best_checkpoint", "history", "before", "after", "config", "interrupted"},
    "EvalResult": {
        *("l1", "cosine", "reward", "psnr", "ssim", "num_clips", "num_samples"),
        *("per_frame", "per_clip", "episode_ids"),
    },
}


def check(function, positional, keywords):
    """The function takes these arguments, and requires no others."""
    parameters = dict(inspect.signature(function).parameters)
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    names = [stars.get(parameter.kind, "") + name for name, parameter in parameters.items()]
    assert names[: len(positional)] == positional
    for name in positional:
        kind, default = parameters[name.lstrip("*")].kind, parameters[name.lstrip("*")].default
        assert default is REQUIRED and kind is not inspect.Parameter.KEYWORD_ONLY
    for name, default in keywords.items():
        assert parameters[name].default == default, name
    known = {name.lstrip("*") for name in positional} | keywords.keys()
    new = {name for name, parameter in parameters.items() if name not in known and parameter.kind not in stars}
    assert not {name for name in new if parameters[name].default is REQUIRED}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_and_their_reference(name):
    for module in (ops, reference):
        check(getattr(module, name), *OPERATORS[name])
    assert inspect.signature(getattr(ops, name)).parameters.keys() == (
        inspect.signature(getattr(reference, name)).parameters.keys()
    )


@pytest.mark.parametrize("name", CALLS)
def test_calls_and_methods(name):
    value = vampo_core
    for part in name.split("."):
        value = getattr(value, part)
    check(value, *CALLS[name])


@pytest.mark.parametrize("name", RESULTS)
def test_results(name):
    assert {field.name for field in fields(getattr(vampo_core, name))} >= RESULTS[name]


def test_operators_return_frozen_results():
    rewards = torch.zeros(1, 2, 3)
    videos = torch.zeros(1, 2, 3, 1, 2, 2)
    assert [field.name for field in fields(ops.latent_reward(videos, videos[:, 0]))] == ["reward", "l1", "cosine"]
    step = ops.hybrid_euler_step(videos[:, 0], videos[:, 0], sigma=2.0, sigma_next=1.0)
    assert [field.name for field in fields(step)] == ["prev_sample", "log_prob"] and step.log_prob is None
    assert ops.group_advantages(rewards).shape == rewards.shape


def test_what_was_built():
    assert vampo_core.build_info().keys() >= {"version", "torch_built", "cuda", "cuda_archs", "compiler"}


def test_everything_public_is_listed():
    assert set(vampo_core.__all__) <= set(dir(vampo_core))
    assert {name.split(".")[0] for name in CALLS} | RESULTS.keys() <= set(vampo_core.__all__)
