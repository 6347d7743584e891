"""The CUDA kernels where there is no GPU: run on the CPU (``helpers/emulated_kernels.py``), against the reference."""

import shutil

import pytest
import torch
from cases import assert_same, double, example_case, relative_error
from emulated_kernels import EmulatedKernels, build

from vampo_core.ops import reference

if shutil.which("g++") is None:
    pytest.skip("there is no g++ to build the emulation with", allow_module_level=True)

# (B, G, F, C, H, W): one element, sizes that four does not divide, frames of several tiles, one to many generations
SHAPES = (
    (1, 1, 1, 1, 1, 1),
    (2, 3, 2, 3, 5, 7),
    (1, 33, 1, 1, 3, 4),
    (2, 33, 2, 1, 3, 5),
    (2, 5, 1, 4, 16, 16),
    (1, 3, 1, 1, 25, 41),
    (1, 5, 2, 4, 32, 32),
    (1, 3, 1, 3, 37, 37),
    (1, 3, 1, 4, 41, 50),
)
GRADIENT_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
NONE, MANY = 0, 10_000  # multiprocessors: all generations in one block, or a block of its own for each

shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
placements = pytest.mark.parametrize("shifted", [False, True], ids=["aligned", "shifted"])


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return build(tmp_path_factory.mktemp("emulated"))


def results(kernels, case, **options):
    """Everything that the operators make of a case."""
    step = case.schedule | case.guidance
    weights = torch.linspace(-1, 1, case.noise[..., 0, 0, 0].numel()).view(case.noise.shape[:3])
    generations = case.noise.shape[1]
    seeded = {"seed": 2**40 + 3, "num_generations": generations, "first_clip": 5}
    given = kernels.hybrid_euler_step(case.sample, case.model_output, **step, eta=1.0, noise=case.noise)
    drawn = kernels.hybrid_euler_step(case.sample, case.model_output, **step, eta=1.0, **seeded)
    reward = kernels.latent_reward(case.noise, case.sample, l1_weight=0.5)
    density = kernels.gaussian_log_prob(
        case.noise, case.sample, case.model_output, **step, reduction="mean", weights=weights
    )
    return {
        "deterministic": kernels.hybrid_euler_step(case.sample, case.model_output, **step).prev_sample,
        "given": given.prev_sample,
        "given log_prob": given.log_prob,
        "drawn": drawn.prev_sample,
        "drawn log_prob": drawn.log_prob,
        "reward": reward.reward,
        "l1": reward.l1,
        "cosine": reward.cosine,
        "noise": kernels.philox_normal(case.noise.shape, seed=2**40 + 3, first_clip=5),
        "log_prob": density[0],
        **{f"gradient {number}": gradient for number, gradient in enumerate(density[1:])},
    }


class DoubledReference:
    """The reference with the signatures of ``EmulatedKernels``."""

    hybrid_euler_step, latent_reward = staticmethod(reference.hybrid_euler_step), staticmethod(reference.latent_reward)

    @staticmethod
    def philox_normal(shape, **options):
        return reference.philox_normal(shape, dtype=torch.float64, **options)

    @staticmethod
    def gaussian_log_prob(prev_sample, sample, model_output, *, weights, **step):
        leaves = [model_output.requires_grad_()]
        if "model_output_uncond" in step:
            leaves.append(step["model_output_uncond"].requires_grad_())
        log_prob = reference.gaussian_log_prob(prev_sample, sample, model_output, **step)
        return [log_prob.detach(), *torch.autograd.grad(log_prob, leaves, weights.double())]


def doubled(case):
    return type(case)(
        sample=double(case.sample),
        model_output=double(case.model_output),
        noise=double(case.noise),
        schedule=case.schedule,
        guidance=double(case.guidance),
        eta=case.eta,
    )


@shapes
@placements
@pytest.mark.parametrize("output_dtype", GRADIENT_TOLERANCE, ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_every_kernel_against_the_reference(library, shape, shifted, output_dtype):
    case = example_case(shape=shape, output_dtype=output_dtype, guided=output_dtype != torch.float16)
    expected = results(DoubledReference, doubled(case))
    got = results(EmulatedKernels(library, NONE, shifted), case)
    assert got.keys() == expected.keys()
    for name, result in got.items():
        tolerance = GRADIENT_TOLERANCE[output_dtype] if "gradient" in name else 1e-5 if "log_prob" in name else 1e-6
        assert relative_error(result, expected[name], floor="log_prob" in name) <= tolerance, name


@shapes
@placements
def test_slices_change_nothing(library, shape, shifted):
    """The same bits, however many generations a block takes."""
    case = example_case(shape=shape)
    expected = results(EmulatedKernels(library, NONE), case)
    assert EmulatedKernels(library, NONE).num_slices(shape) == (2 if shape[1] == 33 else 1)
    assert EmulatedKernels(library, MANY).num_slices(shape) == shape[1]
    for num_processors in (1, 3, MANY):
        for name, result in results(EmulatedKernels(library, num_processors, shifted), case).items():
            assert_same(result, expected[name])


@pytest.mark.parametrize("num_processors", [NONE, MANY])
def test_advantages(library, num_processors):
    rewards = example_case(shape=(3, 5, 100, 1, 1, 1)).noise.view(3, 5, 100)
    advantages = EmulatedKernels(library, num_processors).group_advantages(rewards, clip=1.0)
    assert relative_error(advantages, reference.group_advantages(rewards.double(), clip=1.0)) <= 1e-6


def test_generations_are_divided_only_where_tiles_are_few(library):
    small, large = (4, 8, 8, 16, 8, 8), (4, 16, 25, 4, 72, 128)
    kernels = EmulatedKernels(library, 132)
    assert kernels.num_slices(small) == 8
    assert kernels.num_slices(large) == 1
    assert kernels.num_slices((4, 100, 25, 4, 72, 128)) == 4  # a block sums up to 32
