"""Every wrong argument is refused, with the error of its kind and a message that names it."""

import re

import pytest
import torch

from vampo_core import ops
from vampo_core.ops import reference
from vampo_core.ops.coefficients import euler_coefficients

NAN, INFINITY = float("nan"), float("inf")
LATENTS, ACTIONS = (2, 3, 4, 5, 6), (2, 2, 3, 4, 5, 6)  # [B, F, C, H, W], [B, G, F, C, H, W]


def zeros(*shape, **options):
    return torch.zeros(shape or LATENTS, **options)


def actions(**options):
    return torch.zeros(ACTIONS, **options)


def with_grad(tensor):
    return tensor.requires_grad_()


def arguments_of(operator):
    """Valid arguments, which a case changes in one place."""
    if operator == "group_advantages":
        return {"rewards": torch.arange(24.0).view(2, 3, 4)}
    if operator == "latent_reward":
        return {"pred": actions(), "target": zeros()}
    schedule = {"sample": zeros(), "model_output": zeros(), "sigma": 2.0, "sigma_next": 1.0}
    if operator == "gaussian_log_prob":
        return {"prev_sample": actions(), **schedule}
    return schedule


STEP = "hybrid_euler_step"
GUIDED = {"model_output_uncond": zeros(), "guidance_scale": 2.0}
NOISY = {"eta": 1.0, "noise": actions()}
SEEDED = {"eta": 1.0, "seed": 1}


def rejects_number(name):
    """What no number that an operator takes may be."""
    values = (NAN, INFINITY, -INFINITY)
    types = (None, "1.5", 1j, [1.0], zeros(2), zeros(1, device="meta"))
    return [({name: v}, ValueError, name) for v in values] + [({name: v}, TypeError, name) for v in types]


SCHEDULE = [
    *rejects_number("sigma"),
    *rejects_number("sigma_next"),
    *rejects_number("eta"),
    ({"sigma": 0.0, "sigma_next": 0.0}, ValueError, "sigma"),
    ({"sigma": -1.0}, ValueError, "sigma"),
    ({"sigma_next": -0.5}, ValueError, "sigma_next"),
    ({"sigma_next": 2.0}, ValueError, "sigma_next"),
    ({"sigma_next": 3.0}, ValueError, "sigma_next"),
    ({"eta": -0.1}, ValueError, "eta"),
    ({"prediction_type": "v"}, ValueError, "prediction_type"),
    ({"prediction_type": None}, ValueError, "prediction_type"),
]

MODEL = [
    *SCHEDULE,
    ({"sample": None}, TypeError, "sample"),
    ({"sample": [1.0]}, TypeError, "sample"),
    ({"sample": zeros(3, 4, 5, 6)}, ValueError, "sample"),
    ({"sample": zeros(dtype=torch.bfloat16)}, TypeError, "sample"),
    ({"sample": zeros(dtype=torch.float16)}, TypeError, "sample"),
    ({"sample": zeros(dtype=torch.int64)}, TypeError, "sample"),
    ({"sample": zeros(dtype=torch.complex64)}, TypeError, "sample"),
    ({"sample": zeros(device="meta")}, RuntimeError, "sample"),
    ({"model_output": None}, TypeError, "model_output"),
    ({"model_output": zeros(2, 3, 4, 5, 7)}, ValueError, "model_output"),
    ({"model_output": zeros(1, 3, 4, 5, 6)}, ValueError, "model_output"),
    ({"model_output": zeros(2, 3, 4, 30)}, ValueError, "model_output"),
    ({"model_output": zeros(dtype=torch.float64)}, TypeError, "model_output"),
    ({"model_output": zeros(dtype=torch.int32)}, TypeError, "model_output"),
    ({"model_output": zeros(device="meta")}, RuntimeError, "model_output"),
    ({"model_output_uncond": zeros()}, ValueError, "guidance_scale"),
    ({"guidance_scale": 2.0}, ValueError, "model_output_uncond"),
    ({**GUIDED, "model_output_uncond": 1.0}, TypeError, "model_output_uncond"),
    ({**GUIDED, "model_output_uncond": zeros(2, 3, 4, 6, 5)}, ValueError, "model_output_uncond"),
    ({**GUIDED, "model_output_uncond": zeros(dtype=torch.bfloat16)}, TypeError, "model_output_uncond"),
    ({**GUIDED, "model_output_uncond": zeros(dtype=torch.float64)}, TypeError, "model_output_uncond"),
    ({**GUIDED, "model_output_uncond": zeros(device="meta")}, RuntimeError, "model_output_uncond"),
    ({**GUIDED, "guidance_scale": NAN}, ValueError, "guidance_scale"),
    ({**GUIDED, "guidance_scale": INFINITY}, ValueError, "guidance_scale"),
    ({**GUIDED, "guidance_scale": "2"}, TypeError, "guidance_scale"),
    ({**GUIDED, "guidance_scale": [1.0, 2.0, 3.0]}, TypeError, "guidance_scale"),
    ({**GUIDED, "guidance_scale": zeros(2)}, ValueError, "guidance_scale"),
    ({**GUIDED, "guidance_scale": zeros(3, 1)}, ValueError, "guidance_scale"),
    ({**GUIDED, "guidance_scale": zeros(3, dtype=torch.int64)}, TypeError, "guidance_scale"),
    ({**GUIDED, "guidance_scale": zeros(3, device="meta")}, RuntimeError, "guidance_scale"),
    ({**GUIDED, "guidance_scale": with_grad(zeros(3))}, ValueError, "guidance_scale"),
]

STOCHASTIC = [
    ({"eta": 1.0}, ValueError, "noise"),
    ({"eta": 1.0}, ValueError, "seed"),
    ({**NOISY, "seed": 1}, ValueError, "seed"),
    ({**SEEDED, "sigma_next": 0.0}, ValueError, "sigma_next"),
    ({**SEEDED, "seed": -1}, ValueError, "seed"),
    ({**SEEDED, "seed": 2**63}, ValueError, "seed"),
    ({**SEEDED, "seed": 1.0}, TypeError, "seed"),
    ({**SEEDED, "seed": "1"}, TypeError, "seed"),
    ({**SEEDED, "num_generations": 0}, ValueError, "num_generations"),
    ({**SEEDED, "num_generations": -2}, ValueError, "num_generations"),
    ({**SEEDED, "num_generations": 2.0}, TypeError, "num_generations"),
    ({**SEEDED, "first_clip": -1}, ValueError, "first_clip"),
    ({**SEEDED, "first_clip": 2**32}, ValueError, "first_clip"),
    ({**SEEDED, "first_clip": 2**32 - 1}, ValueError, "first_clip"),  # the second of two clips is too far
    ({**SEEDED, "first_clip": 0.5}, TypeError, "first_clip"),
    ({**SEEDED, "first_clip": None}, TypeError, "first_clip"),
    ({**NOISY, "num_generations": 3}, ValueError, "noise"),
    ({**NOISY, "noise": 1.0}, TypeError, "noise"),
    ({**NOISY, "noise": zeros()}, ValueError, "noise"),
    ({**NOISY, "noise": zeros(2, 2, 3, 4, 5, 7)}, ValueError, "noise"),
    ({**NOISY, "noise": zeros(2, 0, 3, 4, 5, 6)}, ValueError, "noise"),
    ({**NOISY, "noise": actions(dtype=torch.float64)}, TypeError, "noise"),
    ({**NOISY, "noise": actions(dtype=torch.bfloat16)}, TypeError, "noise"),
    ({**NOISY, "noise": actions(device="meta")}, RuntimeError, "noise"),
    ({"noise": actions()}, ValueError, "noise"),
    ({"seed": 0}, ValueError, "seed"),
    ({"num_generations": 2}, ValueError, "num_generations"),
    ({"out": 1.0}, TypeError, "out"),
    ({"out": actions()}, ValueError, "out"),
    ({"out": zeros(2, 3, 4, 6, 5)}, ValueError, "out"),
    ({"out": zeros(2, 3, 4, 6, 5).transpose(3, 4)}, ValueError, "out"),
    ({"out": zeros(1, 1, 1, 1, 1).expand(LATENTS)}, ValueError, "out"),
    ({"out": zeros(dtype=torch.float64)}, TypeError, "out"),
    ({"out": zeros(dtype=torch.bfloat16)}, TypeError, "out"),
    ({"out": zeros(device="meta")}, RuntimeError, "out"),
    ({"out": with_grad(zeros())}, ValueError, "out"),
    ({**NOISY, "out": zeros()}, ValueError, "out"),
    ({**NOISY, "out": zeros(2, 3, 3, 4, 5, 6)}, ValueError, "out"),
    ({**SEEDED, "num_generations": 3, "out": actions()}, ValueError, "out"),
    ({**NOISY, "out": zeros(2, 2, 3, 4, 6, 5).transpose(4, 5)}, ValueError, "out"),
]

LOG_PROB = [
    ({"eta": 0.0}, ValueError, "eta"),
    ({"sigma_next": 0.0}, ValueError, "sigma_next"),
    ({"prev_sample": None}, TypeError, "prev_sample"),
    ({"prev_sample": zeros()}, ValueError, "prev_sample"),
    ({"prev_sample": zeros(1, 2, 3, 4, 5, 6)}, ValueError, "prev_sample"),
    ({"prev_sample": zeros(2, 2, 3, 4, 5, 7)}, ValueError, "prev_sample"),
    ({"prev_sample": actions(dtype=torch.float64)}, TypeError, "prev_sample"),
    ({"prev_sample": actions(dtype=torch.bfloat16)}, TypeError, "prev_sample"),
    ({"prev_sample": actions(device="meta")}, RuntimeError, "prev_sample"),
    ({"prev_sample": with_grad(actions())}, ValueError, "prev_sample"),
    ({"sample": with_grad(zeros())}, ValueError, "sample"),
    ({"reduction": "none"}, ValueError, "reduction"),
    ({"reduction": None}, ValueError, "reduction"),
]

ADVANTAGES = [
    ({"rewards": None}, TypeError, "rewards"),
    ({"rewards": [[1.0, 2.0]]}, TypeError, "rewards"),
    ({"rewards": zeros(4)}, ValueError, "rewards"),
    ({"rewards": zeros(1, 2, 3, 4)}, ValueError, "rewards"),
    ({"rewards": zeros(3, 1)}, ValueError, "rewards"),
    ({"rewards": zeros(3, 1, 4)}, ValueError, "rewards"),
    ({"rewards": zeros(3, 0, 4)}, ValueError, "rewards"),
    ({"rewards": zeros(3, 4, dtype=torch.float16)}, TypeError, "rewards"),
    ({"rewards": zeros(3, 4, dtype=torch.int64)}, TypeError, "rewards"),
    *rejects_number("eps"),
    ({"eps": -1e-8}, ValueError, "eps"),
    *[case for case in rejects_number("clip") if case[0]["clip"] is not None],
    ({"clip": 0.0}, ValueError, "clip"),
    ({"clip": -1.0}, ValueError, "clip"),
]

REWARD = [
    ({"pred": None}, TypeError, "pred"),
    ({"pred": zeros()}, ValueError, "pred"),
    ({"pred": actions(dtype=torch.bfloat16)}, TypeError, "pred"),
    ({"pred": actions(dtype=torch.int64)}, TypeError, "pred"),
    ({"pred": actions(device="meta")}, RuntimeError, "pred"),
    ({"target": None}, TypeError, "target"),
    ({"target": actions()}, ValueError, "target"),
    ({"target": zeros(1, 3, 4, 5, 6)}, ValueError, "target"),
    ({"target": zeros(2, 3, 4, 6, 5)}, ValueError, "target"),
    ({"target": zeros(dtype=torch.float64)}, TypeError, "target"),
    ({"target": zeros(dtype=torch.bfloat16)}, TypeError, "target"),
    ({"target": zeros(device="meta")}, RuntimeError, "target"),
    *rejects_number("l1_weight"),
    *rejects_number("cosine_weight"),
]


def describe(value):
    if isinstance(value, torch.Tensor):
        grad = "-grad" if value.requires_grad else ""
        return f"{value.device.type}-{str(value.dtype)[6:]}-{'x'.join(map(str, value.shape))}{grad}"
    return repr(value)


CASES = [
    pytest.param(operator, *case, id=f"{operator}-" + ",".join(f"{k}={describe(v)}" for k, v in case[0].items()))
    for operator, table in (
        (STEP, MODEL),
        (STEP, STOCHASTIC),
        ("gaussian_log_prob", MODEL),
        ("gaussian_log_prob", LOG_PROB),
        ("group_advantages", ADVANTAGES),
        ("latent_reward", REWARD),
    )
    for case in table
]

implementations = pytest.mark.parametrize("implementation", [ops, reference], ids=["ops", "reference"])


@implementations
@pytest.mark.parametrize(("operator", "changes", "error", "name"), CASES)
def test_refused(implementation, operator, changes, error, name):
    with pytest.raises(error) as caught:
        getattr(implementation, operator)(**arguments_of(operator) | changes)
    assert type(caught.value) is error  # a subclass would be an accident further down
    message = str(caught.value)
    assert re.search(rf"\b{name}\b", message), message
    assert "expected" in message or "take it with eta = 0" in message, message


@implementations
@pytest.mark.parametrize("operator", [STEP, "gaussian_log_prob", "group_advantages", "latent_reward"])
def test_the_unchanged_arguments_are_accepted(implementation, operator):
    getattr(implementation, operator)(**arguments_of(operator))
    if operator == STEP:
        for changes in (NOISY, SEEDED, GUIDED, {**SEEDED, "first_clip": 2**32 - 2}, {**SEEDED, "seed": 2**63 - 1}):
            implementation.hybrid_euler_step(**arguments_of(operator) | changes)


@implementations
@pytest.mark.parametrize("value", [torch.tensor(1), 1, True])
def test_whatever_python_takes_for_an_integer_is_one(implementation, value):
    arguments = arguments_of(STEP) | {"eta": 1.0, "seed": value, "num_generations": value}
    assert implementation.hybrid_euler_step(**arguments).prev_sample.shape == (2, 1, *LATENTS[1:])


@pytest.mark.parametrize("sigma", [2.0, 700.0])
def test_a_last_step_with_noise_says_what_to_do(sigma):
    with pytest.raises(ValueError, match="eta = 0"):
        euler_coefficients(sigma, 0.0, 1.0, "v_prediction")


def overlaps():
    """``(arguments, the input that out overlaps)``, each in a buffer of its own."""
    latents = zeros()
    size = latents.numel()
    whole = torch.zeros(2 * size)
    shifted = torch.zeros(size + 1)
    scale = torch.zeros(size)
    yield {"model_output": latents, "out": latents}, "model_output"
    yield {"sample": whole[:size].view(LATENTS), "out": whole[size - 1 : -1].view(LATENTS)}, "sample"
    yield {"sample": shifted[1:].view(LATENTS), "out": shifted[:-1].view(LATENTS)}, "sample"
    yield {**GUIDED, "model_output_uncond": latents, "out": latents}, "model_output_uncond"
    yield {**GUIDED, "guidance_scale": scale[5:8], "out": scale.view(LATENTS)}, "guidance_scale"
    group = actions()
    yield {**NOISY, "noise": group, "out": group}, "noise"
    yield {**SEEDED, "sample": latents, "out": latents.unsqueeze(1)}, "sample"
    yield {**SEEDED, "sample": group[:, 1], "num_generations": 2, "out": group}, "sample"
    yield {**SEEDED, "model_output": latents, "out": latents.unsqueeze(1)}, "model_output"


@implementations
@pytest.mark.parametrize("index", range(9))
def test_out_must_not_overlap(implementation, index):
    changes, name = list(overlaps())[index]
    with pytest.raises(ValueError, match=rf"out overlaps {name} "):
        implementation.hybrid_euler_step(**arguments_of(STEP) | changes)


@implementations
def test_out_beside_an_input_is_no_overlap(implementation):
    whole = torch.zeros((2, *LATENTS))
    step = implementation.hybrid_euler_step(**arguments_of(STEP) | {"sample": whole[0], "out": whole[1]})
    assert step.prev_sample.data_ptr() == whole[1].data_ptr()
    again = implementation.hybrid_euler_step(**arguments_of(STEP) | {"sample": whole[0], "out": whole[0].view(LATENTS)})
    assert again.prev_sample.data_ptr() == whole.data_ptr()
