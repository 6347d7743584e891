"""What VAMPO does to held-out predictions on PushT, compared with controls and variants for the same compute.

    python benchmarks/posttraining.py [--seeds 0 1 2] [--arms NAME ...] [--iterations N] [--folder FOLDER]
        [--results FOLDER] [-- key=value ...]

For each seed a base is pretrained as the preset says, and every arm starts from it. Compute is counted in denoiser
forwards, with a backward as two, so that it does not depend on the machine: each arm gets the compute of
``--iterations`` iterations of the preset, and only arms of equal ``--iterations`` share a table. Held-out clips, and
the noise they are predicted from, are the same for every arm. A second call continues the first; the tables show the
arms that are done.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from report import environment, provenance

import vampo_core
from vampo_core.config import VampoConfig, load_config
from vampo_core.data.clips import ClipDataset
from vampo_core.diffusion.sampler import EulerHybridSampler
from vampo_core.evaluation.predictor import EvalResult, held_out_batch, score
from vampo_core.evaluation.statistics import Metric, bootstrap, paired_difference
from vampo_core.grpo.cost import forwards_per_iteration, likelihood_updates
from vampo_core.pipeline.base import base_checkpoint
from vampo_core.pipeline.clips import prepare_clips
from vampo_core.pipeline.codec import prepare_codec
from vampo_core.pipeline.runs import PRETRAINING, VAMPO, completed, find_continue_or_begin
from vampo_core.training.loop import TrainResult

BASE, STILL = "base", "first frame repeated"
METRICS = ("l1", "cosine", "reward")


@dataclass(frozen=True)
class Arm:
    """One way to spend the compute."""

    meaning: str
    overrides: tuple[str, ...] = ()
    likelihood: bool = False  # continued pretraining instead of VAMPO


EIGHT_STEPS = ("sampler.num_inference_steps=8", "sampler.sigma_min=0.002", "grpo.num_generations=8")
ARMS = {
    "vampo": Arm("the preset"),
    "likelihood": Arm(
        "pretraining continued at a fifth of its learning rate, falling to 0",
        ("pretrain.lr=8e-4", "pretrain.warmup_steps=20"),
        likelihood=True,
    ),
    "likelihood-full-lr": Arm(
        "pretraining continued at its learning rate, falling to 0", ("pretrain.warmup_steps=20",), likelihood=True
    ),
    "l1-only": Arm("reward: only L1", ("reward.cosine_weight=0",)),
    "cosine-only": Arm("reward: only cosine", ("reward.l1_weight=0",)),
    "g2": Arm("2 generations", ("grpo.num_generations=2",)),
    "g4": Arm("4 generations", ("grpo.num_generations=4",)),
    "g8": Arm("8 generations", ("grpo.num_generations=8",)),
    "sigma-700": Arm("SVD's largest noise level, against the base sampled so too", ("sampler.sigma_max=700",)),
    "anchor": Arm("the ODE tail anchored to the base", ("grpo.anchor_coef=1e-3",)),
    "8-steps": Arm("8 sampling steps down to 0.002, 8 generations, against the base sampled so too", EIGHT_STEPS),
    "8-steps-anchor": Arm("the same, with the anchor", (*EIGHT_STEPS, "grpo.anchor_coef=1e-3")),
    "8-steps-all": Arm(
        "the same, noise and gradient at every step: all-step SDE GRPO",
        (*EIGHT_STEPS, "sampler.stochastic_steps=[0,1,2,3,4,5,6]"),
    ),
}


def iteration_cost(config: VampoConfig) -> int:
    """Denoiser forwards of one VAMPO iteration; what is null in the section ``sampler`` is the sampler's default."""
    return forwards_per_iteration(config.grpo, EulerHybridSampler(**config.sampler.overrides()))


def run_arm(arm: Arm, config: VampoConfig, base: Path, budget: int) -> TrainResult:
    """Spend ``budget`` denoiser forwards on improving the base."""
    config = load_config(config, *arm.overrides, f"model.pretrained={base}")
    if not arm.likelihood:
        iterations = max(1, round(budget / iteration_cost(config)))
        decay = iterations if config.optim.decay_steps else 0
        settings = {
            "grpo.num_iterations": iterations,
            "optim.decay_steps": decay,
            "run.eval_every": -(-iterations // 3),
        }
        config = load_config(config, *(f"{key}={settings[key]}" for key in settings))
        return completed(find_continue_or_begin(VAMPO, config, vampo_core.train, label="run"))
    steps = likelihood_updates(budget, batch_size=config.pretrain.batch_size)
    every = max(1, steps // 3)
    likelihood = {"num_steps": steps, "decay_steps": steps, "eval_every": every, "save_every": every}
    config = load_config(config, *(f"pretrain.{key}={likelihood[key]}" for key in likelihood))
    return completed(find_continue_or_begin(PRETRAINING, config, vampo_core.pretrain, label="run"))


def record(result: TrainResult) -> dict[str, object]:
    """Results of an arm: seconds of training, the held-out curve, and both ends of it clip by clip."""
    curve = [
        {"iteration": row["iteration"], **{name: row[f"eval_{name}"] for name in METRICS}}
        for row in result.history
        if row.get("eval_l1") is not None
    ]
    timed = ("data_s", "rollout_s", "reward_s", "update_s")
    return {
        "iterations": len(result.history),
        "seconds": sum(row.get(name, 0.0) for row in result.history for name in timed),
        "curve": curve,
        "before": result.before.to_dict(),
        "after": result.after.to_dict(),
        "best": max((point["reward"] for point in curve), default=None),
    }


def still(clips: ClipDataset, num_clips: int) -> EvalResult:
    """The prediction that nothing moves."""
    batch = held_out_batch(clips, num_clips)
    first = batch["latents"][:, None, :1]  # [B, 1, 1, C, h, w]
    return score(first.expand_as(batch["latents"][:, None]).contiguous(), batch)


def over_seeds(before: Sequence[EvalResult], after: Sequence[EvalResult], metric: str) -> Metric:
    """Paired difference of the mean over seeds; every seed holds out the same clips, whose episodes are resampled."""
    differences = [
        [b - a for a, b in zip(x.per_clip[metric], y.per_clip[metric], strict=True)]
        for x, y in zip(before, after, strict=True)
    ]
    return bootstrap([statistics.fmean(values) for values in zip(*differences, strict=True)], before[0].episode_ids)


def markdown(records: dict[str, dict], first_frame: EvalResult, head: str) -> str:
    """The table of all arms, then VAMPO seed by seed."""
    seeds = sorted(records)
    lines = [
        head, "",
        f"Seeds {', '.join(seeds)}; {first_frame.num_clips} held-out clips of {len(set(first_frame.episode_ids))} "
        "episodes. Differences (Δ) from the base are paired by clip and means over seeds, with 95 % intervals over "
        "episodes.",
        "",
        "| arm | seeds | iterations | seconds | L1 | cosine | reward | ΔL1 | Δcosine | Δreward |",
        "| --- " * 10 + "|",
        _row(STILL, [], [first_frame]),
        _row(BASE, [], [_result(arms["vampo"]["before"]) for arms in records.values() if "vampo" in arms]),
    ]  # fmt: skip
    for name in ARMS:
        done = [arms[name] for arms in records.values() if name in arms]
        if done:
            lines.append(_row(name, done, [_result(arm["after"]) for arm in done]))
    lines += ["", "| seed | L1 of the base | of VAMPO | change | ΔL1 | Δcosine |", "| --- " * 6 + "|"]
    for seed in seeds:
        if "vampo" in records[seed]:
            before, after = (_result(records[seed]["vampo"][key]) for key in ("before", "after"))
            old, new = before.l1.mean, after.l1.mean
            shifts = [_signed(paired_difference(before, after, metric)) for metric in ("l1", "cosine")]
            lines.append(f"| {seed} | {old:.4f} | {new:.4f} | {(new - old) / old:+.1%} | {' | '.join(shifts)} |")
    lines += ["", *(f"- **{name}**: {arm.meaning}." for name, arm in ARMS.items())]
    return "\n".join(lines) + "\n"


def _row(name: str, arms: list[dict], results: list[EvalResult]) -> str:
    means = [f"{statistics.fmean(getattr(result, metric).mean for result in results):.4f}" for metric in METRICS]
    before = [_result(arm["before"]) for arm in arms]
    shifts = [_signed(over_seeds(before, results, metric)) if arms else "" for metric in METRICS]
    counts = [f"{statistics.fmean(arm[key] for arm in arms):.0f}" if arms else "" for key in ("iterations", "seconds")]
    return "| " + " | ".join([name, str(len(arms) or ""), *counts, *means, *shifts]) + " |"


def _signed(metric: Metric) -> str:
    return f"{metric:+.4f}"


def _result(values: dict) -> EvalResult:
    return EvalResult.from_dict(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="NAME", help=", ".join(ARMS))
    parser.add_argument("--iterations", type=int, default=50, help="iterations of VAMPO, whose compute every arm gets")
    parser.add_argument("--folder", type=Path, default=Path("runs/posttraining"))
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--config", default="pusht")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of all runs")
    args = parser.parse_args()

    config = load_config(args.config, *args.overrides)
    config = load_config(config, f"run.dir={args.folder / 'x'}")
    budget = args.iterations * iteration_cost(config)
    codec = prepare_codec(config)
    first_frame = still(prepare_clips(config, codec).held_out, config.evaluation.num_clips)
    for name in args.arms:  # arm by arm, so that the main comparison has all seeds first
        for seed in args.seeds:
            folder = args.folder / f"seed-{seed}"
            seeded = load_config(config, f"run.seed={seed}", f"run.dir={folder / f'{name}-{args.iterations}'}")
            base = base_checkpoint(seeded)
            print(f"seed {seed}: {name}", flush=True)
            values = record(run_arm(ARMS[name], seeded, base, budget))
            (folder / f"{name}-{args.iterations}.json").write_text(json.dumps(values) + "\n")

    records: dict[str, dict] = {}
    for path in sorted(args.folder.glob(f"seed-*/*-{args.iterations}.json")):
        arm, seed = path.stem.removesuffix(f"-{args.iterations}"), path.parent.name.removeprefix("seed-")
        records.setdefault(seed, {})[arm] = json.loads(path.read_text())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    where = environment(device)
    args.results.mkdir(parents=True, exist_ok=True)
    result = {"environment": where, "config": config.to_dict(), "first_frame": asdict(first_frame), "seeds": records}
    (args.results / f"posttraining-{args.iterations}-{device}.json").write_text(json.dumps(result) + "\n")
    head = provenance(where)
    table = markdown(records, first_frame, head)
    (args.results / f"posttraining-{args.iterations}-{device}.md").write_text(table)
    print(table)


if __name__ == "__main__":
    main()
