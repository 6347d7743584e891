"""hybrid_euler_step against its float64 reference, and everything else its documentation promises."""

from itertools import pairwise

import cases
import pytest
import torch
from cases import HALF_DTYPES, assert_same, double, example_case, relative_error, step_cases
from hypothesis import given
from hypothesis import strategies as st

from vampo_core.ops import hybrid_euler_step, reference
from vampo_core.ops.coefficients import euler_coefficients

OUTPUT_DTYPES = (torch.float32, *HALF_DTYPES)


def expected_step(case, **options):
    arguments = double(case.schedule | case.guidance | options)
    return reference.hybrid_euler_step(double(case.sample), double(case.model_output), **arguments)


@given(st.data())
def test_deterministic_step(device, data):
    case = data.draw(step_cases(device, output_dtypes=OUTPUT_DTYPES))
    result = hybrid_euler_step(case.sample, case.model_output, **case.schedule, **case.guidance)
    assert result.log_prob is None
    assert result.prev_sample.dtype == torch.float32
    assert result.prev_sample.device == case.sample.device
    assert relative_error(result.prev_sample, expected_step(case).prev_sample) <= 1e-6


@given(st.data())
def test_stochastic_step_with_noise(device, data):
    case = data.draw(step_cases(device, output_dtypes=OUTPUT_DTYPES))
    result = hybrid_euler_step(
        case.sample, case.model_output, **case.schedule, **case.guidance, eta=case.eta, noise=case.noise
    )
    expected = expected_step(case, eta=case.eta, noise=case.noise)
    assert result.prev_sample.dtype == result.log_prob.dtype == torch.float32
    assert relative_error(result.prev_sample, expected.prev_sample) <= 1e-6
    assert relative_error(result.log_prob, expected.log_prob, floor=1) <= 1e-5


@given(st.data(), st.integers(0, 2**63 - 1), st.integers(0, 2**32 - 10))
def test_stochastic_step_with_seed(device, data, seed, first_clip):
    case = data.draw(step_cases(device, output_dtypes=OUTPUT_DTYPES))
    options = {"eta": case.eta, "seed": seed, "first_clip": first_clip, "num_generations": case.noise.shape[1]}
    result = hybrid_euler_step(case.sample, case.model_output, **case.schedule, **case.guidance, **options)
    expected = expected_step(case, **options)
    assert relative_error(result.prev_sample, expected.prev_sample) <= 1e-6
    assert relative_error(result.log_prob, expected.log_prob, floor=1) <= 1e-5


@given(st.data())
def test_float64(data):
    case = data.draw(step_cases(dtype=torch.float64, output_dtypes=(torch.float64,)))
    deterministic = hybrid_euler_step(case.sample, case.model_output, **case.schedule, **case.guidance)
    assert deterministic.prev_sample.dtype == torch.float64
    assert relative_error(deterministic.prev_sample, expected_step(case).prev_sample) <= 1e-14
    options = {"eta": case.eta, "noise": case.noise}
    stochastic = hybrid_euler_step(case.sample, case.model_output, **case.schedule, **case.guidance, **options)
    expected = expected_step(case, **options)
    assert stochastic.log_prob.dtype == torch.float64
    assert relative_error(stochastic.prev_sample, expected.prev_sample) <= 1e-14
    assert relative_error(stochastic.log_prob, expected.log_prob, floor=1) <= 1e-13


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_seed_in_float64_and_float32_is_the_same_noise(dtype):
    case = example_case(dtype=dtype)
    result = hybrid_euler_step(case.sample, case.model_output, **case.schedule, eta=1.0, seed=3, num_generations=2)
    expected = expected_step(example_case(dtype=dtype, guided=False), eta=1.0, seed=3, num_generations=2)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    assert relative_error(result.prev_sample, expected.prev_sample) <= tolerance


def test_guidance_of_one_is_no_guidance(device):
    case = example_case(device)
    plain = hybrid_euler_step(case.sample, case.model_output, **case.schedule).prev_sample
    uncond = case.guidance["model_output_uncond"]
    for scale in (1.0, torch.ones(case.sample.shape[1], device=device)):
        guided = hybrid_euler_step(
            case.sample, case.model_output, **case.schedule, model_output_uncond=uncond, guidance_scale=scale
        ).prev_sample
        assert relative_error(guided, plain) <= 1e-6
    unconditional = hybrid_euler_step(
        case.sample, case.model_output, **case.schedule, model_output_uncond=uncond, guidance_scale=0
    ).prev_sample
    assert relative_error(unconditional, hybrid_euler_step(case.sample, uncond, **case.schedule).prev_sample) <= 1e-6


@pytest.mark.parametrize("scale_dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_guidance_scale_of_another_dtype(device, scale_dtype):
    case = example_case(device)
    case.guidance["guidance_scale"] = torch.tensor([1.0, 1.5, 2.0, 3.0], dtype=scale_dtype, device=device)
    result = hybrid_euler_step(case.sample, case.model_output, **case.schedule, **case.guidance)
    assert relative_error(result.prev_sample, expected_step(case).prev_sample) <= 1e-6


def test_scalars_may_be_zero_dimensional_tensors(device):
    case = example_case(device)
    as_tensors = {key: torch.tensor(case.schedule[key], dtype=torch.float64) for key in ("sigma", "sigma_next")}
    result = hybrid_euler_step(case.sample, case.model_output, **as_tensors, **case.guidance)
    assert_same(
        result.prev_sample,
        hybrid_euler_step(case.sample, case.model_output, **case.schedule, **case.guidance).prev_sample,
    )


@pytest.mark.parametrize("options", [{}, {"eta": 1.0, "seed": 1}, {"eta": 1.0, "noise": True}])
def test_results_carry_no_gradient(device, options):
    case = example_case(device)
    options = dict(options)
    if "noise" in options:
        options["noise"] = case.noise.clone().requires_grad_()
    model_output, sample = case.model_output.requires_grad_(), case.sample.requires_grad_()
    case.guidance["model_output_uncond"].requires_grad_()
    result = hybrid_euler_step(sample, model_output, **case.schedule, **case.guidance, **options)
    assert not result.prev_sample.requires_grad
    assert result.log_prob is None or not result.log_prob.requires_grad


def test_out_holds_the_result(device):
    case = example_case(device)
    expected = hybrid_euler_step(case.sample, case.model_output, **case.schedule, **case.guidance)
    out = torch.full_like(case.sample, torch.nan)
    result = hybrid_euler_step(case.sample, case.model_output, **case.schedule, **case.guidance, out=out)
    assert result.prev_sample.data_ptr() == out.data_ptr()
    assert_same(out, expected.prev_sample)
    options = {"eta": 1.0, "noise": case.noise}
    expected = hybrid_euler_step(case.sample, case.model_output, **case.schedule, **case.guidance, **options)
    out = torch.full_like(case.noise, torch.nan)
    result = hybrid_euler_step(case.sample, case.model_output, **case.schedule, **case.guidance, **options, out=out)
    assert result.prev_sample.data_ptr() == out.data_ptr()
    assert_same(out, expected.prev_sample)
    assert_same(result.log_prob, expected.log_prob)


@pytest.mark.parametrize("frame", [(3, 5, 7), (4, 25, 41)])
def test_deterministic_step_in_place(device, frame):
    case = example_case(device, shape=(2, 1, 3, *frame))
    expected = hybrid_euler_step(case.sample, case.model_output, **case.schedule, **case.guidance).prev_sample
    sample = case.sample.clone()
    result = hybrid_euler_step(sample, case.model_output, **case.schedule, **case.guidance, out=sample)
    assert result.prev_sample.data_ptr() == sample.data_ptr()
    assert_same(sample, expected)


def test_inputs_are_left_alone(device):
    case = example_case(device)
    before = [t.clone() for t in (case.sample, case.model_output, case.noise, *case.guidance.values())]
    hybrid_euler_step(case.sample, case.model_output, **case.schedule, **case.guidance)
    hybrid_euler_step(case.sample, case.model_output, **case.schedule, **case.guidance, eta=1.0, noise=case.noise)
    for tensor, copy in zip((case.sample, case.model_output, case.noise, *case.guidance.values()), before, strict=True):
        assert_same(tensor, copy)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", ["sample", "model_output"])
def test_non_finite_inputs_stay_where_they_are(device, where, value):
    case = example_case(device)
    clean = hybrid_euler_step(
        case.sample, case.model_output, **case.schedule, **case.guidance, eta=1.0, noise=case.noise
    )
    getattr(case, where)[1, 2, 0, 3, 4] = value
    marked = torch.zeros_like(case.sample, dtype=torch.bool)  # [B, F, C, H, W]
    marked[1, 2, 0, 3, 4] = True
    deterministic = hybrid_euler_step(case.sample, case.model_output, **case.schedule, **case.guidance)
    assert torch.equal(~deterministic.prev_sample.isfinite(), marked)
    result = hybrid_euler_step(
        case.sample, case.model_output, **case.schedule, **case.guidance, eta=1.0, noise=case.noise
    )
    spoilt = marked.unsqueeze(1).expand_as(case.noise)
    assert torch.equal(~result.prev_sample.isfinite(), spoilt)
    assert_same(result.prev_sample[~spoilt], clean.prev_sample[~spoilt])
    assert_same(result.log_prob, clean.log_prob)  # a function of the noise alone


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_noise_stays_in_its_frame(device, value):
    case = example_case(device)
    case.noise[1, 2, 3, 0, 0, 5] = value
    result = hybrid_euler_step(case.sample, case.model_output, **case.schedule, eta=1.0, noise=case.noise)
    assert (~result.prev_sample.isfinite()).nonzero().tolist() == [[1, 2, 3, 0, 0, 5]]
    assert (~result.log_prob.isfinite()).nonzero().tolist() == [[1, 2, 3]]


def test_num_generations_defaults_to_one(device):
    case = example_case(device)
    one = hybrid_euler_step(case.sample, case.model_output, **case.schedule, eta=1.0, seed=5)
    assert one.prev_sample.shape == (2, 1, 4, 3, 5, 7)
    explicit = hybrid_euler_step(case.sample, case.model_output, **case.schedule, eta=1.0, seed=5, num_generations=1)
    assert_same(one.prev_sample, explicit.prev_sample)
    other = hybrid_euler_step(case.sample, case.model_output, **case.schedule, eta=1.0, seed=6)
    assert not torch.equal(one.prev_sample, other.prev_sample)


def test_autocast_changes_nothing(device):
    case = example_case(device)
    options = {**case.schedule, **case.guidance, "eta": 1.0, "noise": case.noise}
    expected = hybrid_euler_step(case.sample, case.model_output, **options)
    with torch.autocast(device, torch.bfloat16):
        result = hybrid_euler_step(case.sample, case.model_output, **options)
    assert_same(result.prev_sample, expected.prev_sample)
    assert_same(result.log_prob, expected.log_prob)


@pytest.mark.parametrize("layout", cases.LAYOUTS)
def test_results_are_contiguous(device, layout):
    case = example_case(device)
    sample, model_output, noise = (cases.lay_out(t, layout) for t in (case.sample, case.model_output, case.noise))
    assert hybrid_euler_step(sample, model_output, **case.schedule).prev_sample.is_contiguous()
    result = hybrid_euler_step(sample, model_output, **case.schedule, eta=1.0, noise=noise)
    assert result.prev_sample.is_contiguous()
    assert result.log_prob.is_contiguous()


def two_steps(sample, model_output, sigma, sigma_next, seed, guidance):
    options = {"sigma": sigma, "sigma_next": sigma_next, **guidance}
    deterministic = hybrid_euler_step(sample, model_output, **options)
    stochastic = hybrid_euler_step(sample, model_output, **options, eta=1.0, seed=seed, num_generations=2)
    return deterministic.prev_sample, stochastic.prev_sample, stochastic.log_prob


def compare_compiled(compiled, case, sigma, seed):
    arguments = (case.sample, case.model_output, sigma, 0.7 * sigma, seed, case.guidance)
    for result, expected in zip(compiled(*arguments), two_steps(*arguments), strict=True):
        assert relative_error(result, expected) <= 1e-6


def test_compiled_equals_eager(device, fresh_compiler):
    compiled = torch.compile(two_steps, fullgraph=True, backend="aot_eager")
    case = example_case(device)
    for seed in (5, 1005, 2**40):
        compare_compiled(compiled, case, 20.0, seed)


@pytest.mark.requires_kernels
def test_compiled_equals_eager_at_other_sigmas(device, fresh_compiler):
    compiled = torch.compile(two_steps, fullgraph=True, backend="aot_eager")
    case = example_case(device)
    for sigma in (20.0, 10.0, 3.0):
        compare_compiled(compiled, case, sigma, 5)


@pytest.mark.requires_kernels
def test_new_seeds_do_not_recompile(device, fresh_compiler):
    compiled = torch.compile(two_steps, fullgraph=True, backend="aot_eager")
    case = example_case(device)
    for index in range(12):  # torch.compile takes two calls to learn that the seed changes
        with torch.compiler.set_stance("default" if index < 3 else "fail_on_recompile"):
            compare_compiled(compiled, case, 20.0, 1000 * index + 5)


def test_a_whole_schedule_compiles(device, fresh_compiler):
    case = example_case(device)
    sigmas = [20.0 * 0.7**i for i in range(12)] + [0.0]

    def sample_all(sample, model_output):
        for sigma, sigma_next in pairwise(sigmas):
            sample = hybrid_euler_step(sample, model_output * sample, sigma=sigma, sigma_next=sigma_next).prev_sample
        return sample

    compiled = torch.compile(sample_all, fullgraph=True, backend="aot_eager")
    expected = sample_all(case.sample, case.model_output)
    assert relative_error(compiled(case.sample, case.model_output), expected) <= 1e-5


def test_compiled_with_out(device, fresh_compiler):
    case = example_case(device)

    def step(sample, model_output, noise, out):
        hybrid_euler_step(sample, model_output, **case.schedule, eta=1.0, noise=noise, out=out)
        return 2 * out

    buffers = [torch.full_like(case.noise, torch.nan) for _ in range(2)]
    expected = step(case.sample, case.model_output, case.noise, buffers[0])
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    result = compiled(case.sample, case.model_output, case.noise, buffers[1])
    assert relative_error(result, expected) <= 1e-6
    assert relative_error(buffers[1], buffers[0]) <= 1e-6


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
    sample, model_output = (cases.lay_out(value, layout) for value in (case.sample, case.model_output))
    uncond, per_frame = tuple(case.guidance.values()) if guided else (None, None)
    inputs = (sample, model_output, uncond, per_frame, 2.0, a, b)
    torch.library.opcheck(torch.ops.vampo_core.hybrid_euler_step, (*inputs, torch.empty_like(case.sample)))
    for noise in (None, case.noise):
        torch.library.opcheck(
            torch.ops.vampo_core.hybrid_euler_step_stochastic,
            (*inputs, sigma_up, noise, 3, 1, torch.empty_like(case.noise)),
        )
