"""One page about the chain: what changed in the video, what in the robot's success."""

from html import escape
from pathlib import Path

from vampo_core.config import VampoConfig
from vampo_core.evaluation.episodes import compare
from vampo_core.evaluation.predictor import paired_difference
from vampo_core.pipeline.chain import DESCRIPTIONS, POLICIES, ChainResult
from vampo_core.report.page import details, document, section, versions
from vampo_core.report.tables import figure, table

_VIDEO = {"l1": "Latent L1", "cosine": "Cosine", "reward": "Reward"}


def render_chain(config: VampoConfig, result: ChainResult) -> str:
    """The page as HTML, self-contained."""
    facts = f"{config.data.env} · {config.data.num_episodes} episodes recorded · seed {config.run.seed}"
    parts = [
        section("Success in closed loop", _success(result)),
        section("Held-out action error", _actions(result)),
        section("Held-out video", _video(result)),
        section("Stages", _stages(result)),
        details("Configuration", f"<pre>{escape(config.to_yaml())}</pre>"),
    ]
    return document(escape(Path(config.run.dir).name), "Chain", escape(facts), parts, versions())


def _success(result: ChainResult) -> str:
    rows = []
    base = result.closed_loop["base"]
    covers = base.max_coverage is not None
    for name, loop in result.closed_loop.items():
        paired = ""
        if name in POLICIES and name != "base":
            comparison = compare(base, loop)
            paired = f"{figure(comparison.success, '.0%', sign=True)}, p = {comparison.p_value:.2g}"
        coverage = "" if loop.max_coverage is None else figure(loop.max_coverage, ".3f")
        latency = "" if loop.latency is None else f"{loop.latency.p50_ms:.1f} / {loop.latency.p99_ms:.1f} ms"
        rows.append(
            [DESCRIPTIONS[name], str(len(loop.episodes)), figure(loop.success, ".0%"), paired,
             *([coverage] if covers else []), figure(loop.length, ".1f"), latency]
        )  # fmt: skip
    head = ["Policy on", "Episodes", "Success", "Difference, paired", *(["Largest coverage"] if covers else []),
            "Steps", "Action, p50 / p99"]  # fmt: skip
    note = (
        "Differences are from the features of the base, p by the exact McNemar test. 95&nbsp;% intervals: Wilson for "
        "rates, bootstrap over episodes for the rest. All act in the same seeded episodes, none of which was recorded. "
        "Action is what a control step of all slots waits for: a prediction, or the next action of an earlier one."
    )
    return table(head, rows, note) + _by_env(result)


def _by_env(result: ChainResult) -> str:
    names = list(result.closed_loop["base"].success_by_env)
    if len(names) < 2:
        return ""
    rows = [[DESCRIPTIONS[name], *(figure(loop.success_by_env[env], ".0%") for env in names)]
            for name, loop in result.closed_loop.items()]  # fmt: skip
    return table(["Success by task", *(env.rpartition("/")[2] for env in names)], rows)


def _actions(result: ChainResult) -> str:
    rows = []
    for name, policy in result.policies.items():
        difference = paired_difference(result.policies["base"], policy, "action_l1")
        paired = "" if name == "base" else figure(difference, ".4f", sign=True)
        rows.append([DESCRIPTIONS[name], figure(policy.action_l1, ".4f"), paired])
    head = ["Policy on", "Action L1", "Difference from the base, paired"]
    return table(head, rows, "Sampled chunks against the expert's, in units of half the range of each action.")


def _video(result: ChainResult) -> str:
    rows = [
        [title, figure(getattr(result.base, name), ".4f"), figure(getattr(result.vampo, name), ".4f"),
         figure(paired_difference(result.base, result.vampo, name), ".4f", sign=True)]
        for name, title in _VIDEO.items()
    ]  # fmt: skip
    episodes = len(set(result.vampo.episode_ids))
    note = f"{result.vampo.num_clips} clips of {episodes} held-out episodes, both predictors from the same noise. "
    if result.best_iteration == 0:
        note += "VAMPO's best checkpoint is the base itself."
    else:
        note += (
            f"VAMPO is its best checkpoint, iteration {result.best_iteration}, chosen by reward on these very clips: "
            "on others expect a little less."
        )
    return table(["", "Base", "VAMPO", "Difference, paired"], rows, note)


def _stages(result: ChainResult) -> str:
    rows = [[name, f"<code>{escape(str(folder))}</code>"] for name, folder in result.folders.items()]
    note = "Runs are named after all they depend on; those of VAMPO and of policies hold a report of their own."
    return table(["Stage", "Folder"], rows, note)
