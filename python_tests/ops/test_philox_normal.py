"""The noise: Philox4x32-10 as published, normal as promised, and the same in the kernels as in ``philox_normal``."""

import math
import random

import pytest
import torch
from cases import assert_same
from scipy import stats

from vampo_core.ops import hybrid_euler_step, philox_normal, reference
from vampo_core.ops.coefficients import euler_coefficients
from vampo_core.ops.reference import philox4x32_10

KNOWN_ANSWERS = (  # counter, key, result: kat_vectors of Random123
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)


def philox_of_integers(counter, seed):
    """The generator again, in Python's unbounded integers."""
    a, b, c, d = counter
    low, high = seed & 0xFFFFFFFF, seed >> 32
    for _ in range(10):
        left, right = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = right >> 32 ^ b ^ low, right & 0xFFFFFFFF, left >> 32 ^ d ^ high, left & 0xFFFFFFFF
        low, high = (low + 0x9E3779B9) & 0xFFFFFFFF, (high + 0xBB67AE85) & 0xFFFFFFFF
    return a, b, c, d


def normal_at(clip, generation, frame, element, seed):
    """One element of the noise, from the description of it."""
    words = philox_of_integers((element // 4, frame, generation, clip), seed)
    u, v = words[element % 4 // 2 * 2 :][:2]
    u = float(torch.tensor(u).to(torch.float32) * 2**-32 + 2**-33)
    return math.sqrt(-2 * math.log(u)) * (math.sin if element % 2 else math.cos)(2 * math.pi * v / 2**32)


def drawn(shape, seed, device, dtype=torch.float32, first_clip=0):
    """Noise recovered from the step itself: with a sample and model output of zero it is all that is left."""
    zeros = torch.zeros(shape[:1] + shape[2:], dtype=dtype, device=device)  # [B, F, C, H, W]
    schedule = {"sigma": 2.0, "sigma_next": 1.5, "eta": 1.0}
    sigma_up = euler_coefficients(**schedule, prediction_type="epsilon").sigma_up
    step = hybrid_euler_step(zeros, zeros, **schedule, seed=seed, num_generations=shape[1], first_clip=first_clip)
    return step.prev_sample.double().cpu() / sigma_up


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers(counter, key, expected):
    words = philox4x32_10([torch.tensor(word) for word in counter], key[0] | key[1] << 32)
    assert tuple(int(word) for word in words) == expected
    assert philox_of_integers(counter, key[0] | key[1] << 32) == expected


def test_counters_may_be_tensors_of_any_broadcastable_shape():
    rng = random.Random(0)
    counters = [[rng.getrandbits(32) for _ in range(4)] for _ in range(50)]
    seed = rng.getrandbits(64)
    words = philox4x32_10([torch.tensor(column) for column in zip(*counters, strict=True)], seed)
    assert torch.stack(words, 1).tolist() == [list(philox_of_integers(counter, seed)) for counter in counters]
    block, frame = torch.arange(3)[:, None], torch.arange(2)
    words = philox4x32_10([block, frame, torch.tensor(5), torch.tensor(6)], seed)
    assert words[0].shape == (3, 2)
    assert int(words[3][2, 1]) == philox_of_integers((2, 1, 5, 6), seed)[3]


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**63 - 1, 0x299F31D0A4093822])
@pytest.mark.parametrize("first_clip", [0, 7, 2**32 - 2])
def test_every_element_is_where_its_description_says(seed, first_clip):
    shape = (2, 3, 4, 1, 2, 5)
    noise = philox_normal(shape, seed=seed, first_clip=first_clip, dtype=torch.float64)
    for clip, generation, frame, element in [(0, 0, 0, 0), (1, 0, 0, 1), (0, 2, 0, 2), (0, 0, 3, 3), (1, 2, 3, 9)]:
        expected = normal_at(first_clip + clip, generation, frame, element, seed)
        assert float(noise[clip, generation, frame].flatten()[element]) == pytest.approx(expected, abs=1e-12)


FRAME_SIZES = [(1, 1, 1), (1, 1, 3), (3, 5, 7), (1, 1, 1023), (4, 16, 16), (1, 25, 41), (3, 683, 1), (4, 25, 41)]


@pytest.mark.parametrize("frame", FRAME_SIZES)
@pytest.mark.parametrize("seed", [0, 12345, 2**63 - 1])
def test_the_step_draws_this_noise(device, frame, seed):
    shape = (2, 3, 2, *frame)
    for dtype, tolerance in ((torch.float32, 2e-6), (torch.float64, 1e-12)):
        expected = philox_normal(shape, seed=seed, first_clip=9, dtype=torch.float64)
        noise = drawn(shape, seed, device, dtype, first_clip=9)
        assert (noise - expected).abs().max() <= tolerance


def test_accuracy_on_a_million_draws(device):
    shape = (1, 2, 4, 4, 180, 180)
    error = drawn(shape, 3, device) - philox_normal(shape, seed=3, dtype=torch.float64)
    assert error.abs().max() <= 2e-6


def test_moments_and_distribution(device):
    noise = drawn((2, 4, 4, 4, 32, 32), 1, device).flatten()
    count = noise.numel()
    moments = [float((noise**k).mean()) for k in range(1, 5)]
    for moment, expected, variance in zip(moments, (0, 1, 0, 3), (1, 2, 15, 96), strict=True):
        assert abs(moment - expected) <= 4 * math.sqrt(variance / count)
    assert stats.kstest(noise.numpy(), "norm").pvalue > 1e-3
    assert 4.0 < float(noise.abs().max()) < 6.8


def test_the_two_halves_of_box_muller_are_independent(device):
    noise = drawn((1, 1, 8, 4, 32, 32), 2, device).flatten().view(-1, 4)  # [num_blocks, 4]
    bound = 4 / math.sqrt(len(noise))
    for values in (noise, noise.square(), noise.abs()):
        correlation = torch.corrcoef(values.T) - torch.eye(4)
        assert correlation.abs().max() <= bound


@pytest.mark.parametrize("axis", ["clips", "generations", "frames"])
def test_nothing_is_drawn_twice(device, axis):
    size = {"clips": (6, 1, 1), "generations": (1, 6, 1), "frames": (1, 1, 6)}[axis]
    rows = drawn((*size, 4, 32, 32), 4, device).reshape(6, -1)
    assert (torch.corrcoef(rows) - torch.eye(6)).abs().max() <= 4.5 / math.sqrt(rows.shape[1])
    assert len(rows.flatten().unique()) > 0.99 * rows.numel()


def test_seeds_draw_different_noise(device):
    seeds = (0, 1, 2, 2**31, 2**32, 2**32 + 1, 2**62)
    rows = torch.stack([drawn((1, 1, 1, 4, 32, 32), seed, device).flatten() for seed in seeds])
    assert (torch.corrcoef(rows) - torch.eye(len(seeds))).abs().max() <= 4.5 / math.sqrt(rows.shape[1])


def test_parts_of_a_batch_draw_what_the_whole_would(device):
    shape = (5, 3, 2, 3, 5, 7)
    whole = drawn(shape, 6, device)
    parts = [drawn((size, *shape[1:]), 6, device, first_clip=first) for first, size in ((0, 2), (2, 1), (3, 2))]
    assert_same(torch.cat(parts), whole)


def test_fewer_generations_or_frames_draw_the_same(device):
    eight = drawn((2, 8, 4, 3, 5, 7), 6, device)
    assert_same(drawn((2, 4, 4, 3, 5, 7), 6, device), eight[:, :4])
    assert_same(drawn((2, 8, 3, 3, 5, 7), 6, device), eight[:, :, :3])


def test_dtype_and_device_of_philox_normal(device):
    single = philox_normal((1, 2, 2, 1, 3, 3), seed=1, device=device)
    assert single.dtype == torch.float32 and single.device.type == device
    double = philox_normal((1, 2, 2, 1, 3, 3), seed=1, dtype=torch.float64, device=device)
    assert_same(double.float(), single)


@pytest.mark.requires_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("frame", FRAME_SIZES)
def test_the_kernel_is_the_reference(device, dtype, frame):
    """In float32 on the CPU to the last bit, so that runs with and without the kernel are the same."""
    shape = (2, 3, 2, *frame)
    for seed, first_clip in ((0, 0), (2**63 - 1, 2**32 - 2)):
        arguments = {"seed": seed, "first_clip": first_clip, "dtype": dtype, "device": device}
        ours, theirs = philox_normal(shape, **arguments), reference.philox_normal(shape, **arguments)
        assert ours.dtype == dtype and ours.device.type == device
        if device == "cpu" and dtype == torch.float32:
            assert torch.equal(ours, theirs)
        else:  # sine and cosine of two libraries differ in the last bit
            tolerance = 1e-15 if dtype == torch.float64 else 1e-7
            torch.testing.assert_close(ours, theirs, rtol=4 * tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_dtypes_are_rounded(dtype):
    noise = philox_normal((1, 2, 2, 1, 3, 3), seed=1, dtype=dtype)
    assert torch.equal(noise, philox_normal((1, 2, 2, 1, 3, 3), seed=1, dtype=torch.float64).to(dtype))


def test_any_number_of_threads(set_num_threads):
    results = []
    for number in (1, 2, 3):
        set_num_threads(number)
        results.append(philox_normal((3, 4, 5, 4, 16, 17), seed=8))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.requires_kernels
def test_opcheck(device):
    out = torch.empty(2, 3, 2, 1, 3, 5, device=device)
    torch.library.opcheck(torch.ops.vampo_core.philox_normal, (5, 1, out))


@pytest.mark.requires_kernels
def test_compile(fresh_compiler, device):
    def draw(seed: int) -> torch.Tensor:
        return philox_normal((2, 3, 2, 1, 3, 5), seed=seed, device=device) + 1

    compiled = torch.compile(draw, fullgraph=True)
    for seed in (0, 7):
        assert_same(compiled(seed), draw(seed))


@pytest.mark.parametrize("implementation", [philox_normal, reference.philox_normal])
@pytest.mark.parametrize(
    ("shape", "arguments", "message"),
    [
        ((2, 3, 4), {"seed": 0}, r"shape is \(2, 3, 4\), expected \(B, G, F, C, H, W\)"),
        ((1, 1, 1, 1, 1, 1), {"seed": -1}, "seed is -1, expected at least 0"),
        ((1, 1, 1, 1, 1, 1), {"seed": 2**63}, "seed is 9223372036854775808"),
        ((2, 1, 1, 1, 1, 1), {"seed": 0, "first_clip": 2**32 - 1}, "first_clip is 4294967295"),
    ],
)
def test_wrong_arguments(implementation, shape, arguments, message):
    with pytest.raises(ValueError, match=message):
        implementation(shape, **arguments)


@pytest.mark.requires_cuda
def test_a_captured_graph_would_repeat_the_noise():
    refused = pytest.raises(RuntimeError, match="seed is given while a CUDA graph is captured, expected noise=")
    with refused, torch.cuda.graph(torch.cuda.CUDAGraph()):
        philox_normal((1, 1, 1, 1, 1, 1), seed=0, device="cuda")
