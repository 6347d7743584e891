"""The same call gives the same bits: from run to run, for any number of threads, and inside a CUDA graph."""

from dataclasses import replace

import cases
import pytest
import torch
from cases import assert_same, example_case, relative_error

from vampo_core.ops import gaussian_log_prob, group_advantages, hybrid_euler_step, latent_reward

pytestmark = pytest.mark.requires_kernels

# Many small frames, and few that are too large for one chunk or for the cache.
SHAPES = ((4, 4, 8, 4, 25, 41), (1, 2, 1, 4, 160, 161), (1, 9, 1, 4, 256, 256))


def change_latents(case, change):
    """The case with another view of each tensor of latents."""
    uncond = change(case.guidance["model_output_uncond"])
    latents = {name: change(getattr(case, name)) for name in ("sample", "model_output", "noise")}
    return replace(case, **latents, guidance={**case.guidance, "model_output_uncond": uncond})


def step_arguments(case):
    return {**case.schedule, **case.guidance}


def deterministic(case):
    return [hybrid_euler_step(case.sample, case.model_output, **step_arguments(case)).prev_sample]


def with_noise(case):
    step = hybrid_euler_step(case.sample, case.model_output, **step_arguments(case), eta=1.0, noise=case.noise)
    return [step.prev_sample, step.log_prob]


def with_seed(case):
    options = {"eta": 1.0, "seed": 11, "num_generations": case.noise.shape[1]}
    step = hybrid_euler_step(case.sample, case.model_output, **step_arguments(case), **options)
    return [step.prev_sample, step.log_prob]


def log_prob_and_gradients(case):
    leaves = [t.detach().requires_grad_() for t in (case.model_output, case.guidance["model_output_uncond"])]
    options = {"model_output_uncond": leaves[1], "guidance_scale": case.guidance["guidance_scale"]}
    log_prob = gaussian_log_prob(case.noise, case.sample, leaves[0], **case.schedule, **options)
    weights = torch.linspace(-1, 1, log_prob.numel(), device=log_prob.device).view(log_prob.shape)
    return [log_prob.detach(), *torch.autograd.grad(log_prob, leaves, weights)]


def advantages(case):
    rewards = case.noise.flatten(3)[..., :16].reshape(*case.noise.shape[:2], -1)  # [B, G, F * 16]
    return [group_advantages(rewards), group_advantages(rewards, clip=1.0)]


def rewards(case):
    result = latent_reward(case.noise, case.sample)
    return [result.reward, result.l1, result.cosine]


OPERATIONS = (deterministic, with_noise, with_seed, log_prob_and_gradients, advantages, rewards)
operations = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda f: f.__name__)


@operations
@pytest.mark.parametrize("shape", SHAPES)
def test_any_number_of_threads(operation, shape, set_num_threads):
    case = example_case(shape=shape)
    set_num_threads(1)
    expected = operation(case)
    for num_threads in (2, 3):
        set_num_threads(num_threads)
        for result, one in zip(operation(case), expected, strict=True):
            assert_same(result, one)


@operations
@pytest.mark.parametrize("output_dtype", [torch.float32, torch.bfloat16])
def test_from_run_to_run(device, operation, output_dtype):
    case = example_case(device, shape=SHAPES[0], output_dtype=output_dtype)
    expected = operation(case)
    for _ in range(3):
        for result, one in zip(operation(case), expected, strict=True):
            assert_same(result, one)


@operations
@pytest.mark.parametrize("layout", ["transposed", "sliced", "offset"])
def test_strides_change_nothing(device, operation, layout):
    case = example_case(device)
    strided = change_latents(case, lambda latents: cases.lay_out(latents, layout))
    for result, expected in zip(operation(strided), operation(case), strict=True):
        assert_same(result, expected)


@operations
@pytest.mark.parametrize("shape", [(3, 2, 2, 4, 25, 41), (450, 3, 1, 1, 33, 41)])
def test_clips_do_not_depend_on_their_neighbours(device, operation, shape):
    """Nor on their number, by which CUDA kernels decide how many generations share a block."""
    case = example_case(device, shape=shape)
    first = change_latents(case, lambda latents: latents[:1])
    results, whole = operation(first), operation(case)
    if operation is log_prob_and_gradients:  # the weights of its gradients depend on the batch
        results, whole = results[:1], whole[:1]
    for result, expected in zip(results, whole, strict=True):
        assert_same(result, expected[:1])


def test_a_large_step_in_place():
    """Outputs too large for the cache are written past it; that must not show."""
    case = example_case(shape=(1, 1, 3, 1, 2401, 2401))
    sample = case.sample.clone()
    hybrid_euler_step(sample, case.model_output, **step_arguments(case), out=sample)
    assert_same(sample, deterministic(case)[0])
    per_frame = [
        hybrid_euler_step(
            case.sample[:, frame : frame + 1],
            case.model_output[:, frame : frame + 1],
            **case.schedule,
            model_output_uncond=case.guidance["model_output_uncond"][:, frame : frame + 1],
            guidance_scale=case.guidance["guidance_scale"][frame : frame + 1],
        ).prev_sample
        for frame in range(3)
    ]
    assert relative_error(sample, torch.cat(per_frame, 1)) <= 1e-6


def test_a_large_group_is_its_parts():
    case = example_case(shape=(1, 3, 1, 1, 2401, 2401))
    whole = with_noise(case)
    for generation in range(3):
        part = replace(case, noise=case.noise[:, generation : generation + 1])
        for result, expected in zip(with_noise(part), whole, strict=True):
            assert_same(result, expected[:, generation : generation + 1])


@pytest.mark.requires_cuda
@operations
def test_inside_a_cuda_graph(operation):
    case = example_case("cuda", shape=SHAPES[0])
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # capture wants a warm allocator
        operation(case)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = operation(case)
    case.sample.mul_(0.5)
    case.model_output.add_(0.25)
    graph.replay()
    for result, expected in zip(captured, operation(case), strict=True):
        assert_same(result, expected)


@pytest.mark.requires_cuda
@operations
def test_no_hidden_synchronisation(operation):
    case = example_case("cuda", shape=SHAPES[0])
    operation(case)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        operation(case)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.requires_cuda
def test_the_same_noise_on_cpu_and_cuda():
    on_cpu, on_cuda = (with_seed(example_case(device, shape=SHAPES[0])) for device in ("cpu", "cuda"))
    assert (on_cpu[0] - on_cuda[0].cpu()).abs().max() <= 1e-5
    assert relative_error(on_cuda[1], on_cpu[1]) <= 1e-5
