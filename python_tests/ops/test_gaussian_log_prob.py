"""gaussian_log_prob and its gradient against the float64 reference."""

import math
from dataclasses import replace

import cases
import pytest
import torch
from cases import HALF_DTYPES, assert_same, double, example_case, relative_error, step_cases
from hypothesis import given
from hypothesis import strategies as st

from vampo_core.ops import gaussian_log_prob, hybrid_euler_step, reference
from vampo_core.ops.coefficients import euler_coefficients

OUTPUT_DTYPES = (torch.float32, *HALF_DTYPES)
REDUCTIONS = ("mean", "sum")


def actions_of(case) -> torch.Tensor:  # [B, G, F, C, H, W]
    """What the policy of the case draws, in the strides of its noise where those have no stride of zero."""
    drawn = reference.hybrid_euler_step(
        double(case.sample), double(case.model_output), **double(case.schedule | case.guidance), eta=case.eta,
        noise=double(case.noise),
    ).prev_sample.to(case.noise)  # fmt: skip
    return drawn if 0 in case.noise.stride() else torch.empty_like(case.noise).copy_(drawn)


def value_and_gradients(operator, actions, case, weights, **options):
    """Log-probabilities and the gradients of their weighted sum with respect to the model outputs."""
    leaves = {"model_output": case.model_output.detach().requires_grad_()}
    if case.guidance:
        leaves["model_output_uncond"] = case.guidance["model_output_uncond"].detach().requires_grad_()
    arguments = {**case.schedule, **case.guidance, "eta": case.eta, **leaves, **options}
    log_prob = operator(actions, case.sample, **arguments)
    return log_prob, torch.autograd.grad(log_prob, tuple(leaves.values()), weights)


def double_case(case):
    fields = {name: double(getattr(case, name)) for name in ("sample", "model_output", "noise", "guidance")}
    return replace(case, **fields)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@given(data=st.data())
def test_value_and_gradient(device, reduction, data):
    case = data.draw(step_cases(device, output_dtypes=OUTPUT_DTYPES))
    actions = actions_of(case)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    layout = data.draw(st.sampled_from(("contiguous", "transposed", "offset")))
    weights = cases.randn(actions.shape[:3], generator, device=device, layout=layout)  # [B, G, F]
    log_prob, gradients = value_and_gradients(gaussian_log_prob, actions, case, weights, reduction=reduction)
    expected, expected_gradients = value_and_gradients(
        reference.gaussian_log_prob, double(actions), double_case(case), double(weights), reduction=reduction
    )
    assert log_prob.dtype == torch.float32
    count = 1 if reduction == "mean" else case.frame_size
    assert relative_error(log_prob, expected, floor=count) <= 1e-5
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        assert gradient.dtype == case.model_output.dtype
        assert gradient.shape == wanted.shape
        if gradient.numel() > 0:
            assert_rounded(gradient, wanted)


def assert_rounded(gradient, expected):
    """Within one rounding of its dtype, over a float32 computation that is good to 1e-5."""
    info = torch.finfo(gradient.dtype)
    noise = 1e-5 * float(expected.square().mean().sqrt())
    rounding = 0 if gradient.dtype == torch.float32 else info.eps
    bound = rounding * expected.abs() + info.smallest_normal * info.eps + 10 * noise
    assert bool(((double(gradient) - expected).abs() <= bound).all())
    if gradient.dtype == torch.float32:
        assert relative_error(gradient, expected) <= 1e-5


@pytest.mark.parametrize("reduction", REDUCTIONS)
@given(data=st.data())
def test_float64(reduction, data):
    case = data.draw(step_cases(dtype=torch.float64, output_dtypes=(torch.float64,)))
    actions = actions_of(case)
    weights = torch.linspace(-1, 2, math.prod(actions.shape[:3]), dtype=torch.float64).view(actions.shape[:3])
    log_prob, gradients = value_and_gradients(gaussian_log_prob, actions, case, weights, reduction=reduction)
    expected, wanted = value_and_gradients(reference.gaussian_log_prob, actions, case, weights, reduction=reduction)
    assert relative_error(log_prob, expected, floor=1) <= 1e-12
    for one, other in zip(gradients, wanted, strict=True):
        assert one.dtype == torch.float64
        assert relative_error(one, other) <= 1e-12


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("guidance_scale", [None, 2.5, "per frame"])
@pytest.mark.parametrize("prediction_type", cases.PREDICTION_TYPES)
def test_gradcheck(reduction, guidance_scale, prediction_type):
    case = example_case(dtype=torch.float64, shape=(2, 3, 2, 1, 2, 3))
    model_output = case.model_output.requires_grad_()
    uncond = case.guidance["model_output_uncond"].requires_grad_()
    options = {**case.schedule, "prediction_type": prediction_type, "eta": 0.7, "reduction": reduction}
    if guidance_scale == "per frame":
        guidance_scale = torch.tensor([1.0, 2.5], dtype=torch.float64)

    def guided(model_output, uncond):
        return gaussian_log_prob(
            case.noise, case.sample, model_output, model_output_uncond=uncond, guidance_scale=guidance_scale, **options
        )

    def plain(model_output):
        return gaussian_log_prob(case.noise, case.sample, model_output, **options)

    if guidance_scale is None:
        assert torch.autograd.gradcheck(plain, (model_output,))
    else:
        assert torch.autograd.gradcheck(guided, (model_output, uncond))


def test_gradient_is_the_documented_formula(device):
    case = example_case(device)
    actions = actions_of(case)
    weights = cases.randn(actions.shape[:3], torch.Generator().manual_seed(1), device=device)  # [B, G, F]
    _, (wrt_cond, wrt_uncond) = value_and_gradients(gaussian_log_prob, actions, case, weights)
    _, b, sigma_up = euler_coefficients(**case.schedule, eta=case.eta)
    factor = b / (sigma_up * case.frame_size)  # (x' - mu) / sigma_up is the noise
    gradient = factor * (double(weights)[..., None, None, None] * double(case.noise)).sum(1)  # [B, F, C, H, W]
    scale = double(case.guidance["guidance_scale"])[:, None, None, None]
    assert relative_error(wrt_cond, scale * gradient) <= 1e-5
    assert relative_error(wrt_uncond, (1 - scale) * gradient) <= 1e-5


@pytest.mark.parametrize("wanted", ["model_output", "model_output_uncond"])
def test_only_one_model_output_requires_grad(device, wanted):
    case = example_case(device)
    outputs = {"model_output": case.model_output, "model_output_uncond": case.guidance["model_output_uncond"]}
    guidance_scale = case.guidance["guidance_scale"]
    _, both = value_and_gradients(gaussian_log_prob, case.noise, case, torch.ones_like(case.noise[..., 0, 0, 0]))
    outputs[wanted] = outputs[wanted].detach().requires_grad_()
    gaussian_log_prob(
        case.noise, case.sample, **outputs, guidance_scale=guidance_scale, **case.schedule
    ).sum().backward()
    assert relative_error(outputs[wanted].grad, both[list(outputs).index(wanted)]) <= 1e-6
    assert all(value.grad is None for name, value in outputs.items() if name != wanted)


def test_gradient_of_an_expanded_sum(device):
    case = example_case(device)
    ones = torch.ones(case.noise.shape[:3], device=device)
    _, expected = value_and_gradients(gaussian_log_prob, case.noise, case, ones)
    _, actual = value_and_gradients(gaussian_log_prob, case.noise, case, ones[:1, :1, :1].expand_as(ones))
    for one, other in zip(actual, expected, strict=True):
        assert_same(one, other)


def test_no_gradient_where_none_is_asked_for(device):
    case = example_case(device)
    assert not gaussian_log_prob(case.noise, case.sample, case.model_output, **case.schedule).requires_grad
    with torch.no_grad():
        model_output = case.model_output.requires_grad_()
        assert not gaussian_log_prob(case.noise, case.sample, model_output, **case.schedule).requires_grad


@given(st.data())
def test_agrees_with_the_step_that_drew_the_actions(device, data):
    case = data.draw(step_cases(device))
    arguments = {**case.schedule, **case.guidance, "eta": case.eta}
    step = hybrid_euler_step(case.sample, case.model_output, **arguments, noise=case.noise)
    log_prob = gaussian_log_prob(step.prev_sample, case.sample, case.model_output, **arguments)
    assert relative_error(log_prob, step.log_prob, floor=1) <= 3e-5


def test_sum_is_the_mean_times_the_frame_size(device):
    case = example_case(device)
    mean, total = (
        gaussian_log_prob(case.noise, case.sample, case.model_output, **case.schedule, reduction=reduction)
        for reduction in REDUCTIONS
    )
    assert relative_error(total, case.frame_size * mean) <= 1e-6


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["prev_sample", "sample", "model_output"])
def test_non_finite_inputs_stay_in_their_frame(device, where, value):
    case = example_case(device)
    actions = actions_of(case)
    if where == "prev_sample":
        actions[1, 2, 3, 0, 1, 2] = value
        spoilt, spoilt_gradient = [[1, 2, 3]], [1, 3]
    else:
        getattr(case, where)[1, 3, 0, 1, 2] = value
        spoilt, spoilt_gradient = [[1, g, 3] for g in range(3)], [1, 3]
    weights = torch.ones(actions.shape[:3], device=device)
    log_prob, gradients = value_and_gradients(gaussian_log_prob, actions, case, weights)
    assert (~log_prob.isfinite()).nonzero().tolist() == spoilt
    for gradient in gradients:
        assert (~gradient.isfinite()).nonzero().tolist() == [[*spoilt_gradient, 0, 1, 2]]


def test_autocast_changes_nothing(device):
    case = example_case(device)
    weights = torch.ones(case.noise.shape[:3], device=device)
    expected, expected_gradients = value_and_gradients(gaussian_log_prob, case.noise, case, weights)
    with torch.autocast(device, torch.bfloat16):
        log_prob, gradients = value_and_gradients(gaussian_log_prob, case.noise, case, weights)
    assert_same(log_prob, expected)
    for one, other in zip(gradients, expected_gradients, strict=True):
        assert_same(one, other)


def compare_compiled(compiled, case, sigma):
    results = []
    for function in (compiled, gaussian_log_prob):
        model_output = case.model_output.detach().requires_grad_()
        log_prob = function(case.noise, case.sample, model_output, sigma=sigma, sigma_next=0.7 * sigma)
        results.append((log_prob, *torch.autograd.grad(log_prob.exp().sum(), (model_output,))))
    for result, expected in zip(*results, strict=True):
        assert relative_error(result, expected) <= 1e-6


def test_compiled_equals_eager(device, fresh_compiler):
    compiled = torch.compile(gaussian_log_prob, fullgraph=True, backend="aot_eager")
    compare_compiled(compiled, example_case(device), 20.0)


@pytest.mark.requires_kernels
def test_compiled_equals_eager_at_other_sigmas(device, fresh_compiler):
    compiled = torch.compile(gaussian_log_prob, fullgraph=True, backend="aot_eager")
    for sigma in (20.0, 10.0, 3.0):
        compare_compiled(compiled, example_case(device), sigma)


@pytest.mark.requires_kernels
@pytest.mark.parametrize(
    ("output_dtype", "guided", "layout"),
    [
        (torch.float32, True, "contiguous"),
        (torch.float32, False, "transposed"),
        (torch.bfloat16, True, "transposed"),
        (torch.float16, False, "contiguous"),
    ],
)
def test_opcheck(device, output_dtype, guided, layout):
    case = example_case(device, output_dtype=output_dtype)
    a, b, sigma_up = euler_coefficients(1.8, 1.1, 1.0, "v_prediction")
    actions, sample, model_output = (cases.lay_out(t, layout) for t in (case.noise, case.sample, case.model_output))
    uncond, per_frame = tuple(case.guidance.values()) if guided else (None, None)
    inputs = (actions, sample, model_output, uncond, per_frame, 2.0, a, b, sigma_up, True)
    grad_log_prob = torch.ones(actions.shape[:3], device=device)
    torch.library.opcheck(torch.ops.vampo_core.gaussian_log_prob_backward, (grad_log_prob, *inputs))
    torch.library.opcheck(torch.ops.vampo_core.gaussian_log_prob, inputs)
