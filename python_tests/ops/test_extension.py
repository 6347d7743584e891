"""What an installation says about itself, with the compiled library and without it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vampo_core
from vampo_core import _extension

KEYS = {"version", "compiled", "torch_built", "torch_running", "cuda", "cuda_archs", "compiler"}

WITHOUT_LIBRARY = """
import json, sys, warnings
sys.meta_path[:] = [f for f in sys.meta_path if not getattr(f, "__module__", "").startswith("__editable__")]
if "hidden" in sys.argv:
    sys.modules["vampo_core._C"] = None
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch
    import vampo_core
    from vampo_core import ops
    before = len([w for w in caught if "vampo_core" in str(w.message)])
    latents = torch.arange(24.0).view(1, 2, 1, 3, 4)
    for seed in range(3):
        step = ops.hybrid_euler_step(latents, latents, sigma=2.0, sigma_next=1.0, eta=1.0, seed=seed, num_generations=4)
        deterministic = ops.hybrid_euler_step(latents, latents, sigma=2.0, sigma_next=1.0)
        model_output = latents.clone().requires_grad_()
        log_prob = ops.gaussian_log_prob(step.prev_sample, latents, model_output, sigma=2.0, sigma_next=1.0)
        log_prob.sum().backward()
        reward = ops.latent_reward(step.prev_sample, latents).reward
        advantages = ops.group_advantages(reward)
result = {
    "info": vampo_core.build_info(),
    "warnings": [(w.category.__name__, str(w.message)) for w in caught if "vampo_core" in str(w.message)],
    "at_import": before,
    "shapes": [list(t.shape) for t in (step.prev_sample, deterministic.prev_sample, log_prob, advantages)],
    "gradient": model_output.grad.abs().sum().item(),
    "log_prob_error": (log_prob - step.log_prob).abs().max().item(),
    "prev_sample": step.prev_sample.flatten().tolist(),
}
print(json.dumps(result))
"""


@pytest.fixture(scope="module", params=["hidden", "absent"])
def without_library(request, tmp_path_factory):
    """What a fresh interpreter makes of a library that cannot be imported, and of one that was never built."""
    folder = tmp_path_factory.mktemp("source")
    package = Path(vampo_core.__file__).parent
    shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("_C.*", "__pycache__"))
    process = subprocess.run(
        [sys.executable, "-c", WITHOUT_LIBRARY, request.param], capture_output=True, text=True, cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def test_build_info():
    info = vampo_core.build_info()
    assert info.keys() >= KEYS
    assert info["version"] == vampo_core.__version__
    assert info["torch_running"] == torch.__version__
    assert isinstance(info["compiled"], bool) and isinstance(info["cuda"], bool)
    assert info["cuda"] == bool(info["cuda_archs"])
    assert all(isinstance(arch, str) for arch in info["cuda_archs"])
    json.dumps(info)


def test_build_info_is_a_copy():
    vampo_core.build_info()["version"] = "changed"
    assert vampo_core.build_info()["version"] == vampo_core.__version__


@pytest.mark.requires_kernels
def test_build_info_of_the_compiled_library():
    info = vampo_core.build_info()
    assert info["compiled"]
    assert info["compiler"] and info["torch_built"]


@pytest.mark.requires_kernels
def test_every_compiled_operator_is_checked_by_a_test():
    """Each of these has an opcheck; a new operator needs one too."""
    names = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("vampo_core::")}
    assert names == {
        "vampo_core::hybrid_euler_step",
        "vampo_core::hybrid_euler_step_stochastic",
        "vampo_core::gaussian_log_prob",
        "vampo_core::gaussian_log_prob_backward",
        "vampo_core::group_advantages",
        "vampo_core::latent_reward",
        "vampo_core::philox_normal",
    }


@pytest.mark.requires_kernels
def test_kernels_serve_the_cpu_without_a_warning(recwarn):
    for dtype in (torch.float32, torch.float64):
        assert _extension.has_kernel(torch.zeros(1, dtype=dtype))
    latents = torch.randn(1, 2, 3, 4, 5)
    vampo_core.ops.hybrid_euler_step(latents, latents, sigma=2.0, sigma_next=1.0)
    assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]


def test_public_names():
    assert set(vampo_core.ops.__all__) >= {
        "gaussian_log_prob", "group_advantages", "hybrid_euler_step", "latent_reward", "reference",
    }  # fmt: skip
    assert all(hasattr(vampo_core.ops, name) for name in vampo_core.ops.__all__)


def test_the_operators_work_without_the_library(without_library):
    assert without_library["shapes"] == [[1, 4, 2, 1, 3, 4], [1, 2, 1, 3, 4], [1, 4, 2], [1, 4, 2]]
    assert without_library["gradient"] > 0
    assert without_library["log_prob_error"] < 1e-5


def test_they_draw_what_the_kernels_draw(without_library):
    latents = torch.arange(24.0).view(1, 2, 1, 3, 4)
    step = vampo_core.ops.hybrid_euler_step(
        latents, latents, sigma=2.0, sigma_next=1.0, eta=1.0, seed=2, num_generations=4
    )
    torch.testing.assert_close(
        step.prev_sample.flatten(), torch.tensor(without_library["prev_sample"]), rtol=1e-6, atol=1e-5
    )


def test_one_warning_says_how_to_build_the_library(without_library):
    assert without_library["at_import"] == 0
    assert [category for category, _ in without_library["warnings"]] == ["RuntimeWarning"]
    message = without_library["warnings"][0][1]
    assert "pip install" in message
    assert "circular import" not in message  # Python's guess at why a module is missing would mislead


def test_build_info_without_the_library(without_library):
    info = without_library["info"]
    assert info.keys() >= KEYS
    assert info["compiled"] is False and info["cuda"] is False
    assert info["cuda_archs"] == [] and info["compiler"] is None and info["torch_built"] is None
