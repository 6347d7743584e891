"""How much of the policy gradient grpo.credit keeps, against the exact gradient of the mean reward.

    python benchmarks/credit.py --checkpoint FOLDER [--config metaworld] [--steps 2 8 25] [--clips 8] [--draws 32]
        [--results FOLDER] [-- key=value ...]

The exact gradient differentiates the latent reward through the ODE tail, back to the draws of the stochastic step, and
averages over them; it needs no advantage, but the graph of every step. Rewards of frame f differentiated only with
respect to the draw of frame f give what ``frame`` keeps in expectation; random signs get all frames from one backward
pass. Every clip counts in units of its group's spread, as in advantages, so ``clip`` keeps everything by construction.

Averages over draws are noisy, so no product takes both factors from the same draws: each half of them is multiplied
with the other half. The column "halves" is the cosine of the exact gradient of one half with that of the other.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from report import environment
from torch import Tensor

from vampo_core.config import RewardConfig, VampoConfig, load_config
from vampo_core.diffusion.sampler import EulerHybridSampler
from vampo_core.diffusion.trajectory import Denoise
from vampo_core.evaluation.predictor import held_out_batch
from vampo_core.grpo.advantages import credited_advantages
from vampo_core.grpo.loss import clipped_surrogate
from vampo_core.grpo.rollout import ModelOutput, RolloutEngine
from vampo_core.models.predictor import VideoPredictor
from vampo_core.pipeline.clips import prepare_clips
from vampo_core.pipeline.predictor import load_predictor

CREDITS = ("frame", "clip")
GENERATIONS = (8, 16)
SEED = 0


@dataclass(frozen=True)
class Pathwise:
    """Rewards of draws, and gradients of them with respect to the draws, averaged over each half of the draws."""

    rewards: Tensor  # [B, N, F]
    exact: Tensor  # [2, B, F, C, h, w], of the mean over frames
    own: Tensor  # [2, B, F, C, h, w], of each frame's reward (over F) with respect to its own draw


@dataclass(frozen=True)
class Row:
    """What was measured at one number of sampling steps."""

    num_inference_steps: int
    halves: float
    left_out: float  # norm of what credit "frame" leaves out, over the exact gradient's, at the denoiser's output
    own_at_output: float  # cosine of what it keeps, with respect to the output
    frame_at_output: float  # the same with every frame in units of its own spread, as its advantages are
    frame_at_weights: float  # the same with respect to the weights
    at_group_size: dict[str, dict[int, float]]  # credit -> G -> mean cosine of one group's gradient in the weights


def latent_rewards(pred: Tensor, target: Tensor, config: RewardConfig) -> Tensor:  # [N, F, C, h, w] -> [N, F]
    """The latent reward, which the operator returns without gradient."""
    cosine = torch.cosine_similarity(pred.flatten(2), target.flatten(2), dim=-1)
    return config.cosine_weight * cosine - config.l1_weight * (pred - target).abs().flatten(2).mean(-1)


def differentiable_tail(sampler: EulerHybridSampler, x: Tensor, denoise: Denoise) -> Tensor:  # [N, F, C, h, w]
    """The steps behind the first stochastic one, as ``sampler.tail`` takes them, with gradient."""
    for index in range(sampler.first_stochastic_step + 1, sampler.num_steps):
        output = ModelOutput(*denoise(x, sampler.sigmas[index], None))
        step = sampler.coefficients(index)
        x = step.a * x + step.b * output.guided(sampler.guidance(x, output.uncond, sampler.sigmas[index]))
    return x


def pathwise(
    sampler: EulerHybridSampler,
    denoise: Denoise,
    draws: Tensor,  # [B, N, F, C, h, w]
    target: Tensor,  # [B, F, C, h, w]
    config: RewardConfig,
) -> Pathwise:
    """Differentiate the rewards through the tail, one draw of every clip at a time."""
    num_draws, num_frames = draws.shape[1:3]
    generator = torch.Generator().manual_seed(SEED)
    exact, own = (draws.new_zeros(2, *target.shape) for _ in CREDITS)
    rewards = []
    for g in range(num_draws):
        x = draws[:, g].clone().requires_grad_()
        reward = latent_rewards(differentiable_tail(sampler, x, denoise), target, config)
        exact[g % 2] += torch.autograd.grad(reward.mean(1).sum(), x, retain_graph=True)[0]
        # E[s_k s_f] is 1 for k = f and 0 otherwise: what remains is the own part of each frame
        sign = (2.0 * torch.randint(2, reward.shape, generator=generator) - 1).to(reward)
        (mixed,) = torch.autograd.grad((sign * reward).sum() / num_frames, x)
        own[g % 2] += sign[..., None, None, None] * mixed
        rewards.append(reward.detach())
    return Pathwise(torch.stack(rewards, dim=1), exact / (num_draws // 2), own / (num_draws // 2))


def inner(a: Tensor, b: Tensor) -> float:
    """Inner product of two averages over draws, from different halves: [2, ...] each."""
    return 0.5 * float((a[0] * b[1]).sum() + (a[1] * b[0]).sum())


def cosine(a: Tensor, b: Tensor) -> float:
    return inner(a, b) / (inner(a, a) * inner(b, b)) ** 0.5


def measure(model: VideoPredictor, config: VampoConfig, batch: dict, num_draws: int) -> Row:
    """One number of sampling steps."""
    sampler = model.sampler(**config.sampler.overrides())
    if len(sampler.stochastic_steps) > 1 or sampler.solver != "euler":
        raise ValueError(
            f"sampler has stochastic_steps {sampler.stochastic_steps} and solver {sampler.solver!r}, expected one "
            "stochastic step and 'euler'"
        )
    target = batch["latents"]
    engine = RolloutEngine(model, sampler, num_generations=num_draws, chunk_size=None, reuse_first_step=True)
    condition = engine.condition(batch)
    denoise = model.denoiser(condition, guidance=sampler.guides)
    sample = sampler.prefix(sampler.initial_noise(tuple(target.shape), seed=SEED), denoise)
    output = engine.forward(sample, sampler.first_sigma, condition)
    draws = sampler.first_step(
        sample, output.cond, num_generations=num_draws, seed=SEED, model_output_uncond=output.uncond
    ).prev_sample
    path = pathwise(sampler, denoise, draws, target, config.reward)

    b = sampler.coefficients(sampler.first_stochastic_step).b  # from the draw to the denoiser's output
    clip_spread = path.rewards.mean(2).std(1).view(-1, 1, 1, 1, 1)
    frame_spread = path.rewards.std(1)[..., None, None, None]
    exact, own, framed = b * path.exact / clip_spread, b * path.own / clip_spread, b * path.own / frame_spread

    weights = [p for p in model.denoiser_network.parameters() if p.requires_grad]
    guided = output.guided(sampler.guidance(sample, output.uncond, sampler.first_sigma))

    def to_weights(scalar: Tensor, gradient: Tensor | None = None) -> Tensor:
        parts = torch.autograd.grad(scalar, weights, gradient, retain_graph=True, allow_unused=True)
        return torch.cat([part.flatten() for part in parts if part is not None])

    exact_w, framed_w = (torch.stack([to_weights(guided, half) for half in x]) for x in (exact, framed))
    norm = inner(exact_w, exact_w) ** 0.5

    def group_cosine(credit: str, half: int, members: Tensor) -> float:
        advantages = credited_advantages(path.rewards[:, members], credit=credit, clip=config.grpo.adv_clip_max)
        log_prob = sampler.log_prob(draws[:, members], sample, output.cond, model_output_uncond=output.uncond)
        loss = clipped_surrogate(log_prob, log_prob.detach(), advantages, clip_range=config.grpo.clip_range).loss
        gradient = -to_weights(loss)
        return float(gradient @ exact_w[1 - half]) / (float(gradient.norm()) * norm)

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
                for size in GENERATIONS
            }
            for credit in CREDITS
        },
    )


def markdown(rows: Sequence[Row], head: str, num_clips: int, num_draws: int) -> str:
    """The table: one row for each number of steps."""
    groups = [(credit, size) for size in GENERATIONS for credit in CREDITS]
    names = [f"{credit}, G {size}" for credit, size in groups]
    columns = ["steps", "halves", "left out", "own", "frame", "frame, weights", *names]
    lines = [
        head, "",
        f"{num_clips} held-out clips, {num_draws} draws of each; the latent reward. Cosines with the exact gradient of "
        "the mean reward, in expectation: *own* of what credit `frame` keeps, *frame* of the same with every frame in "
        "units of its own spread, as its advantages are, both with respect to the denoiser's output; *frame, weights* "
        f"with respect to its weights. Then of one iteration, {num_clips} groups of G, with respect to the weights. "
        "*Left out* is the norm of what `frame` leaves out, over the exact gradient's. *Halves* is the cosine "
        "between the exact gradients of two halves of the draws. Credit `clip` leaves out nothing.",
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
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of the configuration")
    args = parser.parse_args()
    if args.draws < 1 or args.draws % (2 * max(GENERATIONS)):
        parser.error(f"--draws is {args.draws}, expected a multiple of {2 * max(GENERATIONS)}: two halves of groups")

    where = environment("cpu")  # at the beginning: the commit of the code that runs
    config = load_config(args.config, *args.overrides)
    model = load_predictor(config, args.checkpoint).eval()
    batch = held_out_batch(prepare_clips(config, model.codec).held_out, args.clips)
    rows = []
    for steps in args.steps:
        print(f"{steps} steps", flush=True)
        sampled = load_config(config, f"sampler.num_inference_steps={steps}")
        rows.append(measure(model, sampled, batch, args.draws))
    args.results.mkdir(parents=True, exist_ok=True)
    result = {"environment": where, "config": config.to_dict(), "num_clips": args.clips, "num_draws": args.draws}
    (args.results / "credit-cpu.json").write_text(json.dumps(result | {"rows": [asdict(row) for row in rows]}) + "\n")
    head = f"{where['machine']}, torch {where['torch']}, commit {where['commit']}, {where['date']}"
    table = markdown(rows, head, args.clips, args.draws)
    (args.results / "credit-cpu.md").write_text(table)
    print(table)


if __name__ == "__main__":
    main()
