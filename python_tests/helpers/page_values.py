"""Made-up results of policies and chains, for the pages about them."""

from pathlib import Path

import numpy as np
import torch

from vampo_core.config import load_config
from vampo_core.evaluation.episodes import ClosedLoopResult, EpisodeResult
from vampo_core.evaluation.predictor import EvalResult
from vampo_core.evaluation.statistics import bootstrap, paired_difference
from vampo_core.policy.evaluation import PolicyEvalResult
from vampo_core.report.values import ArmResult, ChainResult, ClipVideo, ComparedRun, PolicySummary, RunComparison


def video_result(l1: float) -> EvalResult:
    """An evaluation of four clips."""
    values = {"l1": [l1, 1.1 * l1, 1.2 * l1, 1.4 * l1], "cosine": [0.5, 0.6, 0.7, 0.8]}
    values["reward"] = [c - x for x, c in zip(values["l1"], values["cosine"], strict=True)]
    episodes = list("aabb")
    metrics = {name: bootstrap(value, episodes) for name, value in values.items()}
    frames = {name: value[:3] for name, value in values.items()}
    return EvalResult(**metrics, num_clips=4, num_samples=1, per_frame=frames, per_clip=values, episode_ids=episodes)


def action_errors(l1: float) -> PolicyEvalResult:
    """An evaluation of three frames, in chunks of four actions."""
    values = {"action_l1": [l1, 1.1 * l1, 1.3 * l1], "action_mse": [l1**2, 2 * l1**2, 3 * l1**2]}
    episodes = ["a", "b", "b"]
    return PolicyEvalResult(
        **{name: bootstrap(value, episodes) for name, value in values.items()},
        num_clips=3,
        num_samples=1,
        per_step={name: [value[0] * (1 + i / 4) for i in range(4)] for name, value in values.items()},
        per_clip=values,
        episode_ids=episodes,
    )


def closed_loop(*successes: bool, coverage: float | None = None) -> ClosedLoopResult:
    """Episodes of two tasks in turns."""
    rng = np.random.default_rng(0)
    return ClosedLoopResult(
        [
            EpisodeResult(
                f"world/task-{'ab'[i % 2]}", i, success, 10 + 5 * i, 0.0,
                None if coverage is None else coverage + i / 10, tuple(rng.uniform(5, 9, 10 + 5 * i).tolist()),
            )
            for i, success in enumerate(successes)
        ]
    )  # fmt: skip


def policy_summary() -> PolicySummary:
    """Four updates of a policy."""
    rows = [{"iteration": i, "loss": 1 / i, "grad_norm": 2.0 + i, "lr": 1e-3} for i in range(1, 5)]
    rows[-1] |= {"eval_action_l1": 0.5, "eval_action_mse": 0.25}
    return PolicySummary(
        config=load_config("pusht", "run.dir=runs/<policy>"),
        rows=rows,
        before=action_errors(0.9),
        after=action_errors(0.5),
        step=4,
        facts=["predictive features of the base", "chunks of 4 actions, 2 executed"],
    )


def arm_result(title: str, l1: float, num_steps: int = 0, unit: str | None = "iteration") -> ArmResult:
    """An arm whose predictor nobody has."""
    return ArmResult(title=title, predictor=None, evaluation=video_result(l1), num_steps=num_steps, unit=unit)


def chain_result(*, coverage: float | None = None) -> ChainResult:
    """Two policies and the expert, in four episodes."""
    return ChainResult(
        folders={"data": "data/<x>", "base": "runs/base", "vampo": "runs/vampo"},
        arms={"base": arm_result("Base", 0.5, unit=None), "vampo": arm_result("<VAMPO>", 0.4, 7)},
        policies={"base": action_errors(0.5), "vampo": action_errors(0.4)},
        closed_loop={
            "base": closed_loop(False, False, True, False, coverage=coverage),
            "vampo": closed_loop(False, True, True, True, coverage=coverage),
            "expert": closed_loop(True, True, True, True, coverage=coverage),
        },
    )


def clip_videos(*labels: str) -> list[ClipVideo]:
    """Two clips of three frames, in noise."""
    generator = torch.Generator().manual_seed(0)
    return [
        ClipVideo(
            clip_id=f"clip-{i}",
            instruction="push <it>",
            panels={label: torch.rand(3, 3, 16, 16, generator=generator) for label in labels},
            l1={label: 0.1 for label in labels[1:]},
        )
        for i in range(2)
    ]


def compared_run(name: str, best: EvalResult, **values) -> ComparedRun:
    """A run of which only the page needs to know."""
    values = {
        "kind": "post-training", "rows": [], "before": video_result(0.6), "best_step": 7, "last_step": 7,
        "num_steps": 7, "differences": {}, "not_compared": {}, "config": load_config("pusht"), **values,
    }  # fmt: skip
    return ComparedRun(name=name, best=best, **values)


def run_comparison(num_runs: int) -> RunComparison:
    """Predictors with curves, a setting and videos."""
    runs: list[ComparedRun] = []
    for i in range(num_runs):
        best = video_result(0.5 - 0.02 * i)
        rows = [{"iteration": n, "reward_mean": 0.1 * n + i, "rollout_s": 1.0} for n in range(1, 8)]
        rows[-1]["eval_l1"] = best.l1.mean
        names = best.metrics if runs else ()
        differences = {name: paired_difference(runs[0].best, best, name) for name in names}
        runs.append(compared_run(f"vampo-with-a-long-name-{i}", best, rows=rows, differences=differences))
    videos = clip_videos("Expert", *(run.name for run in runs))
    settings = {"optim.lr": [1e-4 * (i + 1) for i in range(num_runs)]}
    return RunComparison(runs=runs, settings=settings, videos=videos, page=Path("x.html"))
