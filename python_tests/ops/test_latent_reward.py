"""latent_reward against its float64 reference."""

import cases
import pytest
import torch
from cases import assert_same, double, relative_error
from hypothesis import given
from hypothesis import strategies as st

from vampo_core.ops import latent_reward, reference

NAMES = ("reward", "l1", "cosine")


@st.composite
def latents(draw, device="cpu", dtype=torch.float32):
    """``pred [B, G, F, C, H, W]`` near ``target [B, F, C, H, W]``."""
    shape = draw(cases.shapes())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    target = cases.randn(shape[:1] + shape[2:], generator, dtype)
    pred = target.unsqueeze(1) + draw(st.sampled_from((0.3, 2.0))) * cases.randn(shape, generator, dtype)
    layouts = st.sampled_from(cases.LAYOUTS)
    return cases.lay_out(pred.to(device), draw(layouts)), cases.lay_out(target.to(device), draw(layouts))


def example(device="cpu", dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    target = cases.randn((2, 3, 4, 5, 7), generator, dtype)
    return (target.unsqueeze(1) + cases.randn((2, 4, 3, 4, 5, 7), generator, dtype)).to(device), target.to(device)


WEIGHTS = st.fixed_dictionaries({"l1_weight": st.floats(0, 2), "cosine_weight": st.floats(-1, 2)})


@given(st.data(), WEIGHTS)
def test_equals_the_float64_reference(device, data, weights):
    pred, target = data.draw(latents(device))
    result = latent_reward(pred, target, **weights)
    expected = reference.latent_reward(double(pred), double(target), **weights)
    for name in NAMES:
        value = getattr(result, name)
        assert value.dtype == torch.float32
        assert value.device == pred.device
        assert relative_error(value, getattr(expected, name), floor=1) <= 1e-5
    assert relative_error(result.l1, expected.l1) <= 1e-5


@given(st.data(), WEIGHTS)
def test_float64(data, weights):
    pred, target = data.draw(latents(dtype=torch.float64))
    result, expected = (operator(pred, target, **weights) for operator in (latent_reward, reference.latent_reward))
    for name in NAMES:
        assert getattr(result, name).dtype == torch.float64
        assert relative_error(getattr(result, name), getattr(expected, name), floor=1) <= 1e-12


def test_known_values(device):
    target = torch.zeros(1, 3, 1, 1, 2, device=device)
    target[0, :, 0, 0] = torch.tensor([[3.0, 4.0], [1.0, 0.0], [1.0, 1.0]])
    pred = torch.zeros(1, 2, 3, 1, 1, 2, device=device)
    pred[0, 0, :, 0, 0] = torch.tensor([[3.0, 4.0], [0.0, 2.0], [-1.0, -1.0]])
    pred[0, 1, :, 0, 0] = torch.tensor([[4.0, 3.0], [5.0, 0.0], [1.0, 0.0]])
    result = latent_reward(pred, target, l1_weight=0.5, cosine_weight=2.0)
    l1 = torch.tensor([[[0.0, 1.5, 2.0], [1.0, 2.0, 0.5]]])
    cosine = torch.tensor([[[1.0, 0.0, -1.0], [0.96, 1.0, 2**-0.5]]])
    assert relative_error(result.l1, l1) <= 1e-6
    assert relative_error(result.cosine, cosine) <= 1e-6
    assert relative_error(result.reward, 2 * cosine - 0.5 * l1) <= 1e-6


def test_the_target_itself_is_the_best(device):
    _, target = example(device)
    result = latent_reward(target.unsqueeze(1).expand(-1, 2, -1, -1, -1, -1), target)
    assert torch.equal(result.l1.cpu(), torch.zeros(2, 2, 3))
    assert relative_error(result.reward, torch.ones(2, 2, 3)) <= 1e-6


@pytest.mark.parametrize("scale", [1e-6, 1e6, 1e12])
def test_cosine_has_no_scale(device, scale):
    pred, target = example(device)
    expected = latent_reward(pred, target).cosine
    assert relative_error(latent_reward(scale * pred, scale * target).cosine, expected) <= 1e-5


def test_a_zero_frame_has_cosine_zero(device):
    pred, target = example(device)
    pred[0, 1, 2] = 0
    target[1, 0] = 0
    cosine = latent_reward(pred, target).cosine
    zeros = [[0, 1, 2], *([1, g, 0] for g in range(4))]
    assert (cosine == 0).nonzero().tolist() == zeros


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", ["pred", "target"])
def test_non_finite_latents_stay_in_their_frame(device, where, value):
    pred, target = example(device)
    clean = latent_reward(pred, target)
    spoilt = torch.zeros(2, 4, 3, dtype=torch.bool, device=device)  # [B, G, F]
    if where == "pred":
        pred[1, 2, 0, 3, 4, 6] = value
        spoilt[1, 2, 0] = True
    else:
        target[1, 0, 3, 4, 6] = value
        spoilt[1, :, 0] = True
    result = latent_reward(pred, target)
    for name in NAMES:
        assert_same(getattr(result, name)[~spoilt], getattr(clean, name)[~spoilt])
    for name in ("reward", "l1"):
        assert not getattr(result, name)[spoilt].isfinite().any()
    assert bool(result.cosine[spoilt].isnan().all())


def test_carries_no_gradient_and_leaves_its_inputs_alone(device):
    pred, target = example(device)
    copies = pred.clone(), target.clone()
    result = latent_reward(pred.requires_grad_(), target.requires_grad_())
    assert not any(getattr(result, name).requires_grad for name in NAMES)
    assert_same(pred, copies[0])
    assert_same(target, copies[1])


def test_autocast_changes_nothing(device):
    pred, target = example(device)
    expected = latent_reward(pred, target)
    with torch.autocast(device, torch.bfloat16):
        result = latent_reward(pred, target)
    for name in NAMES:
        assert_same(getattr(result, name), getattr(expected, name))


def test_compiled_equals_eager(device, fresh_compiler):
    pred, target = example(device)
    compiled = torch.compile(latent_reward, fullgraph=True, backend="aot_eager")
    for weights in ({}, {"l1_weight": 0.5}, {"l1_weight": 0.25}, {"l1_weight": 2.0, "cosine_weight": 0.5}):
        result, expected = compiled(pred, target, **weights), latent_reward(pred, target, **weights)
        for name in NAMES:
            assert relative_error(getattr(result, name), getattr(expected, name)) <= 1e-6


@pytest.mark.requires_kernels
@pytest.mark.parametrize("layout", cases.LAYOUTS)
def test_opcheck(device, layout):
    pred, target = (cases.lay_out(value, layout) for value in example(device))
    torch.library.opcheck(torch.ops.vampo_core.latent_reward, (pred, target, 1.0, 0.5))
