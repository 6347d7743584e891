"""How much of the policy gradient grpo.credit keeps, against the exact gradient of the mean reward.

    python benchmarks/credit.py --checkpoint FOLDER [--config metaworld] [--steps 2 8 25] [--clips 8] [--draws 32]
        [--results FOLDER] [--name credit] [-- key=value ...]

The exact gradient differentiates the reward through the ODE tail, back to the draws of the stochastic step, and
averages over them; it needs no advantage, but the graph of every step. Rewards of frame f differentiated only with
respect to the draw of frame f give what ``frame`` keeps in expectation; random signs get all frames from one backward
pass. Every clip counts in units of its group's spread, as in advantages, so ``clip`` keeps everything by construction.

Averages over draws are noisy, so no product takes both factors from the same draws: each half of them is multiplied
with the other half. The column "halves" is the cosine of the exact gradient of one half with that of the other.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from report import environment, provenance
from torch import Tensor

from vampo_core.config import VampoConfig, load_config
from vampo_core.config.sections import Credit
from vampo_core.diffusion.sampler import EulerHybridSampler
from vampo_core.diffusion.trajectory import Denoise
from vampo_core.evaluation.actions import Decoders
from vampo_core.evaluation.predictor import held_out_batch
from vampo_core.grpo.advantages import credited_advantages
from vampo_core.grpo.loss import clipped_surrogate
from vampo_core.grpo.rewards import configured_rewards, evaluate_rewards
from vampo_core.grpo.rollout import RolloutEngine
from vampo_core.models.predictor import VideoPredictor
from vampo_core.pipeline.clips import prepare_clips
from vampo_core.pipeline.decoders import reward_decoders
from vampo_core.pipeline.predictor import load_predictor

GENERATIONS: dict[Credit, tuple[int, ...]] = {"frame": (8, 16), "clip": (8, 16), "pathwise": (1, 2)}
SEED = 0
TINY = 1e-12


@dataclass(frozen=True)
class Pathwise:
    """Rewards of draws, and gradients of them with respect to the draws."""

    rewards: Tensor  # [B, N, F]
    slopes: Tensor  # [B, N, F, C, h, w], of the mean over frames, with respect to each draw
    own: Tensor  # [2, B, F, C, h, w], of each frame's reward (over F) with respect to its own draw; mean of each half

    @property
    def exact(self) -> Tensor:  # [2, B, F, C, h, w]
        """Mean of the slopes over each half of the draws."""
        return torch.stack([self.slopes[:, half::2].mean(1) for half in (0, 1)])


Reward = Callable[[Tensor, Tensor], Tensor]
"""Videos ``[B, G, F, C, h, w]`` and targets ``[B, F, C, h, w]`` to rewards ``[B, G, F]``."""


@dataclass(frozen=True)
class Row:
    """What was measured at one number of sampling steps."""

    num_inference_steps: int
    halves: float
    left_out: float  # norm of what credit "frame" leaves out, over the exact gradient's, at the denoiser's output
    own_at_output: float  # cosine of what it keeps, with respect to the output
    frame_at_output: float  # the same with every frame in units of its own spread, as its advantages are
    frame_at_weights: float  # the same with respect to the weights
    at_group_size: dict[Credit, dict[int, float]]  # credit -> G -> mean cosine of one group's gradient in the weights


def pathwise(
    sampler: EulerHybridSampler,
    denoise: Denoise,
    draws: Tensor,  # [B, N, F, C, h, w]
    target: Tensor,  # [B, F, C, h, w]
    reward_of: Reward,
) -> Pathwise:
    """Differentiate the rewards through the tail, one draw of every clip at a time."""
    num_draws, num_frames = draws.shape[1:3]
    generator = torch.Generator().manual_seed(SEED)
    own = draws.new_zeros(2, *target.shape)
    rewards, slopes = [], []
    for g in range(num_draws):
        x = draws[:, g].clone().requires_grad_()
        videos = sampler.differentiable_tail(x.unsqueeze(1), denoise)
        reward = reward_of(videos, target)[:, 0]  # [B, F]
        slopes += torch.autograd.grad(reward.mean(1).sum(), x, retain_graph=True)
        # E[s_k s_f] is 1 for k = f and 0 otherwise: what remains is the own part of each frame
        sign = (2.0 * torch.randint(2, reward.shape, generator=generator) - 1).to(reward)
        (mixed,) = torch.autograd.grad((sign * reward).sum() / num_frames, x)
        own[g % 2] += sign[..., None, None, None] * mixed
        rewards.append(reward.detach())
    return Pathwise(torch.stack(rewards, dim=1), torch.stack(slopes, dim=1), own / (num_draws // 2))


def inner(a: Tensor, b: Tensor) -> float:
    """Inner product of two averages over draws, from different halves: [2, ...] each."""
    return 0.5 * float((a[0] * b[1]).sum() + (a[1] * b[0]).sum())


def cosine(a: Tensor, b: Tensor) -> float:
    return inner(a, b) / (inner(a, a) * inner(b, b)) ** 0.5


def measure(
    model: VideoPredictor, config: VampoConfig, batch: dict, num_draws: int, decoders: Decoders | None = None
) -> Row:
    """One number of sampling steps."""
    functions = configured_rewards(config.reward, model.codec, decoders)
    sampler = model.sampler(**config.sampler.overrides())
    target = batch["latents"]
    engine = RolloutEngine(model, sampler, num_generations=num_draws, chunk_size=None, reuse_first_step=True)
    condition = engine.condition(batch)
    denoise = model.denoiser(condition, guidance=sampler.guides)
    sample = sampler.prefix(sampler.initial_noise(tuple(target.shape), seed=SEED), denoise)
    output = engine.forward(sample, sampler.first_sigma, condition)
    draws = sampler.first_step(
        sample, output.cond, num_generations=num_draws, seed=SEED, model_output_uncond=output.uncond
    ).prev_sample
    path = pathwise(
        sampler, denoise, draws, target, lambda videos, target: evaluate_rewards(functions, videos, target, batch).total
    )

    b = sampler.coefficients(sampler.first_stochastic_step).b  # from the draw to the denoiser's output
    clip_spread = path.rewards.mean(2).std(1).view(-1, 1, 1, 1, 1)
    frame_spread = path.rewards.std(1)[..., None, None, None]
    exact, own, framed = (
        torch.where(spread > TINY, b * x / spread, 0.0)  # where actions do not count there is no spread
        for x, spread in ((path.exact, clip_spread), (path.own, clip_spread), (path.own, frame_spread))
    )

    weights = [p for p in model.denoiser_network.parameters() if p.requires_grad]
    guided = output.guided(sampler.guidance(sample, output.uncond, sampler.first_sigma))

    def to_weights(scalar: Tensor, gradient: Tensor | None = None) -> Tensor:
        parts = torch.autograd.grad(scalar, weights, gradient, retain_graph=True, allow_unused=True)
        return torch.cat([part.flatten() for part in parts if part is not None])

    exact_w, framed_w, plain_w = (
        torch.stack([to_weights(guided, half) for half in x]) for x in (exact, framed, b * path.exact)
    )

    def group_cosine(credit: Credit, half: int, members: Tensor) -> float:
        if credit == "pathwise":  # which knows no spread
            gradient = to_weights(guided, b * path.slopes[:, members].mean(1))
            return float(gradient @ plain_w[1 - half]) / (float(gradient.norm()) * inner(plain_w, plain_w) ** 0.5)
        advantages = credited_advantages(path.rewards[:, members], credit=credit, clip=config.grpo.adv_clip_max)
        log_prob = sampler.log_prob(draws[:, members], sample, output.cond, model_output_uncond=output.uncond)
        loss = clipped_surrogate(log_prob, log_prob.detach(), advantages, clip_range=config.grpo.clip_range).loss
        gradient = -to_weights(loss)
        return float(gradient @ exact_w[1 - half]) / (float(gradient.norm()) * inner(exact_w, exact_w) ** 0.5)

    return Row(
        num_inference_steps=sampler.num_inference_steps,
        halves=float(torch.cosine_similarity(exact[0].flatten(), exact[1].flatten(), dim=0)),
        left_out=(inner(exact - own, exact - own) / inner(exact, exact)) ** 0.5,
        own_at_output=cosine(own, exact),
        frame_at_output=cosine(framed, exact),
        frame_at_weights=cosine(framed_w, exact_w),
        at_group_size={
            credit: {
                size: statistics.fmean(
                    group_cosine(credit, half, members)
                    for half in (0, 1)
                    for members in torch.arange(half, num_draws, 2).split(size)
                )
                for size in sizes
            }
            for credit, sizes in GENERATIONS.items()
        },
    )


def markdown(rows: Sequence[Row], head: str, reward: str, num_clips: int, num_draws: int) -> str:
    """The table: one row for each number of steps."""
    groups = [(credit, size) for credit, sizes in GENERATIONS.items() for size in sizes]
    names = [f"{credit}, G {size}" for credit, size in groups]
    columns = ["steps", "halves", "left out", "own", "frame", "frame, weights", *names]
    lines = [
        head, "",
        f"{num_clips} held-out clips, {num_draws} draws of each; {reward}. Cosines with the exact gradient of "
        "the mean reward, in expectation: *own* of what credit `frame` keeps, *frame* of the same with every frame in "
        "units of its own spread, as its advantages are, both with respect to the denoiser's output; *frame, weights* "
        f"with respect to its weights. Then of one iteration, {num_clips} groups of G, with respect to the weights. "
        "*Left out* is the norm of what `frame` leaves out, over the exact gradient's. *Halves* is the cosine "
        "between the exact gradients of two halves of the draws. Credits `clip` and `pathwise` leave out nothing.",
        "",
        f"| {' | '.join(columns)} |",
        "| --- " * len(columns) + "|",
    ]  # fmt: skip
    for row in rows:
        cells = [str(row.num_inference_steps), f"{row.halves:.2f}", f"{row.left_out:.0%}"]
        cells += [f"{value:.3f}" for value in (row.own_at_output, row.frame_at_output, row.frame_at_weights)]
        cells += [f"{row.at_group_size[credit][size]:.3f}" for credit, size in groups]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="model folder, checkpoint or run folder")
    parser.add_argument("--config", default="metaworld")
    parser.add_argument("--steps", type=int, nargs="+", default=[2, 8, 25], help="numbers of sampling steps")
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--draws", type=int, default=32, help="draws of each clip")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--name", default="credit", help="first part of the results' file names")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of the configuration")
    args = parser.parse_args()
    if args.draws < 1 or args.draws % (2 * max(GENERATIONS["clip"])):
        parser.error(
            f"--draws is {args.draws}, expected a multiple of {2 * max(GENERATIONS['clip'])}: two halves of groups"
        )

    where = environment("cpu")  # at the beginning: the commit of the code that runs
    config = load_config(args.config, *args.overrides)
    model = load_predictor(config, args.checkpoint).eval()
    clips = prepare_clips(config, model.codec)
    batch, decoders = held_out_batch(clips.held_out, args.clips), reward_decoders(config, model.codec, clips)
    weights = {name.removesuffix("_weight"): x for name, x in vars(config.reward).items() if name.endswith("_weight")}
    reward = "reward " + " + ".join(f"{x:g} {name}" for name, x in weights.items() if x)
    rows = []
    for steps in args.steps:
        print(f"{steps} steps", flush=True)
        sampled = load_config(config, f"sampler.num_inference_steps={steps}")
        rows.append(measure(model, sampled, batch, args.draws, decoders))
    args.results.mkdir(parents=True, exist_ok=True)
    result = {"environment": where, "config": config.to_dict(), "num_clips": args.clips, "num_draws": args.draws}
    (args.results / f"{args.name}-cpu.json").write_text(
        json.dumps(result | {"rows": [asdict(row) for row in rows]}) + "\n"
    )
    head = provenance(where)
    table = markdown(rows, head, reward, args.clips, args.draws)
    (args.results / f"{args.name}-cpu.md").write_text(table)
    print(table)


if __name__ == "__main__":
    main()
