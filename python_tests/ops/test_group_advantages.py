"""group_advantages against its float64 reference, and the groups that a division would spoil."""

import math

import cases
import pytest
import torch
from cases import assert_same, double, relative_error
from hypothesis import given
from hypothesis import strategies as st

from vampo_core import ops
from vampo_core.ops import group_advantages, reference
from vampo_core.ops.spread import is_flat

SHAPES = ((2, 3, 4), (2, 3), (1, 2, 1), (3, 5, 16), (0, 4, 2), (0, 4), (2, 4, 0), (7, 33, 5), (1, 1025, 2), (1030, 2))


@st.composite
def rewards_of(draw, device="cpu", dtype=torch.float32):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    layouts = ("contiguous", "transposed", "sliced", "cropped", "offset")
    values = cases.randn(draw(st.sampled_from(SHAPES)), generator, dtype)
    shifted = draw(st.sampled_from((0.0, -1.0, 30.0))) + draw(st.sampled_from((1.0, 0.05))) * values
    return cases.lay_out(shifted.to(device), draw(st.sampled_from(layouts)))


OPTIONS = st.fixed_dictionaries(
    {
        "eps": st.sampled_from((1e-8, 0.0, 0.1)),
        "clip": st.sampled_from((None, 0.5, 5)),
        "normalize_std": st.booleans(),
    }
)


@given(st.data(), OPTIONS)
def test_equals_the_float64_reference(device, data, options):
    rewards = data.draw(rewards_of(device))
    advantages = group_advantages(rewards, **options)
    assert advantages.dtype == torch.float32
    assert advantages.device == rewards.device
    # float32 keeps about 30 / 0.05 * 6e-8 of the spread of rewards that have a large common offset
    exact = float(rewards.abs().max()) < 10 if rewards.numel() else True
    expected = reference.group_advantages(double(rewards), **options)
    assert relative_error(advantages, expected) <= (1e-5 if exact else 1e-4)


@given(st.data(), OPTIONS)
def test_float64(data, options):
    rewards = data.draw(rewards_of(dtype=torch.float64))
    advantages = group_advantages(rewards, **options)
    assert advantages.dtype == torch.float64
    assert relative_error(advantages, reference.group_advantages(rewards, **options)) <= 1e-12


@given(st.data())
def test_is_centred_and_has_unit_deviation(device, data):
    rewards = data.draw(rewards_of(device, torch.float32))
    advantages = double(group_advantages(rewards))
    spread = double(rewards).std(1)
    assert advantages.mean(1).abs().max() <= 1e-5 if rewards.numel() else True
    assert advantages.std(1).sub(spread / (spread + 1e-8)).abs().max() <= 1e-5 if rewards.numel() else True


def test_known_values(device):
    rewards = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 3.0]], device=device)
    expected = torch.tensor([[-1.0, 0.0, 1.0], [-(3**-0.5), -(3**-0.5), 2 * 3**-0.5]])
    assert relative_error(group_advantages(rewards), expected) <= 1e-6
    centred = torch.tensor([[-1.0, 0.0, 1.0], [-1.0, -1.0, 2.0]])
    assert relative_error(group_advantages(rewards, normalize_std=False), centred) <= 1e-6
    damped = group_advantages(rewards, eps=1.0)
    assert relative_error(damped[0], torch.tensor([-0.5, 0.0, 0.5])) <= 1e-6


@pytest.mark.parametrize("value", [0.0, 0.1, -1 / 3, 1e30, 1e-30, 16777217.0])
@pytest.mark.parametrize("num_generations", [2, 3, 7, 10, 1025])
@pytest.mark.parametrize("eps", [1e-8, 0.0])
@pytest.mark.parametrize("normalize_std", [True, False])
def test_zero_spread_gives_exactly_zero(device, value, num_generations, eps, normalize_std):
    rewards = torch.randn(3, num_generations, 2, generator=torch.Generator().manual_seed(0)).to(device)
    rewards[1, :, 1] = value
    advantages = group_advantages(rewards, eps=eps, normalize_std=normalize_std)
    assert torch.equal(advantages[1, :, 1].cpu(), torch.zeros(num_generations))
    others = torch.ones_like(rewards, dtype=torch.bool)
    others[1, :, 1] = False
    assert bool((advantages[others] != 0).all())


def test_clip_limits_both_sides(device):
    rewards = torch.tensor([[0.0] * 9 + [1.0], [0.0] + [1.0] * 9], device=device)
    free = group_advantages(rewards)
    assert free.max() > 2 and free.min() < -2
    clipped = group_advantages(rewards, clip=1.5)
    assert_same(clipped, free.clamp(-1.5, 1.5))
    assert float(clipped.max()) == 1.5 and float(clipped.min()) == -1.5


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_non_finite_rewards_stay_in_their_group(device, value, clip):
    rewards = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0)).to(device)
    clean = group_advantages(rewards, clip=clip)
    rewards[1, 2, 0] = value
    advantages = group_advantages(rewards, clip=clip)
    spoilt = torch.zeros_like(rewards, dtype=torch.bool)
    spoilt[1, :, 0] = True
    assert torch.equal(advantages.isnan(), spoilt)
    assert_same(advantages[~spoilt], clean[~spoilt])


def test_frames_are_groups_of_their_own(device):
    rewards = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)).to(device)
    whole = group_advantages(rewards)
    for frame in range(5):
        assert relative_error(whole[..., frame], group_advantages(rewards[..., frame])) <= 1e-6


def test_carries_no_gradient(device):
    rewards = torch.randn(2, 3, 4, device=device, requires_grad=True)
    assert not group_advantages(rewards).requires_grad


def test_autocast_changes_nothing(device):
    rewards = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).to(device)
    expected = group_advantages(rewards)
    with torch.autocast(device, torch.bfloat16):
        assert_same(group_advantages(rewards), expected)


def test_compiled_equals_eager(device, fresh_compiler):
    rewards = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).to(device)
    compiled = torch.compile(group_advantages, fullgraph=True, backend="aot_eager")
    for clip in (None, 0.5, 1.0, 1.5):
        assert relative_error(compiled(rewards, clip=clip), group_advantages(rewards, clip=clip)) <= 1e-6


@pytest.mark.requires_kernels
@pytest.mark.parametrize("shape", SHAPES[:3])
@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
def test_opcheck(device, shape, clip, layout):
    rewards = cases.lay_out(torch.randn(shape, device=device), layout)
    torch.library.opcheck(torch.ops.vampo_core.group_advantages, (rewards, 1e-8, clip, True))


@pytest.mark.parametrize("implementation", [ops, reference], ids=["ops", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reward", [0.8266, -3.5, 1e6, 1e-20])
@pytest.mark.parametrize("normalize_std", [True, False])
def test_rounding_is_no_spread(implementation, dtype, reward, normalize_std):
    """One unit in the last place must not become an advantage of about 1; sixteen of them are a difference."""
    rewards = torch.full((1, 4, 2), reward, dtype=dtype)
    rewards[0, 1, 0] = torch.nextafter(rewards[0, 1, 0], torch.tensor(math.inf, dtype=dtype))
    assert rewards.std(1).max() > 0
    advantages = implementation.group_advantages(rewards, normalize_std=normalize_std)
    assert torch.equal(advantages, torch.zeros_like(rewards))
    assert is_flat(rewards).all()
    rewards[0, 1, 0] += 16 * torch.finfo(dtype).eps * abs(reward)
    advantages = implementation.group_advantages(rewards, eps=0.0, normalize_std=normalize_std)
    assert advantages[0, 1, 0] > 0 and torch.equal(advantages[..., 1], torch.zeros(1, 4, dtype=dtype))
    assert is_flat(rewards).tolist() == [[False, True]]


def test_rewards_around_zero_have_a_spread():
    rewards = torch.tensor([[1e-30, -1e-30, 0.0]])
    assert not is_flat(rewards)
    assert group_advantages(rewards, eps=0.0)[0].tolist() == pytest.approx([1.0, -1.0, 0.0])
