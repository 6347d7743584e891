"""What can go wrong in a training and shows in its rows: threshold, sentence and remedy of each check, once.

Where the thresholds come from is in ``docs/health.md``. A check is silent where a row lacks what it reads: most belong
to the policy gradient, the others to every training.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from vampo_core.config import VampoConfig
from vampo_core.evaluation.metrics import METRICS
from vampo_core.evaluation.statistics import changes_of, direction

Rows = Sequence[Mapping[str, Any]]

FEW, MANY = 5, 20
"""Iterations that a mean is taken over: enough that one odd batch does not count, and one odd minute."""
SMALL = 0.01
"""Share by which a held-out metric has to get worse."""
NOTICEABLE_S = 10.0
"""Seconds that waiting is measured over, besides ten iterations: a hiccup of a busy machine is shorter."""
LONG_ENOUGH_S = 30.0
"""Seconds that a mean of speeds has to cover, besides :data:`MANY` iterations."""


@dataclass(frozen=True)
class Check:
    """One thing that can be wrong."""

    name: str
    """Two or three words, as in the table of ``docs/health.md``."""
    limit: float
    """Threshold, in what ``find`` measures."""
    measure: Callable[[Rows, VampoConfig, float], str | None]
    """Says what is wrong in the last row, given the rows so far, the settings and the limit; None for nothing."""
    remedy: str
    """What to change: settings by name."""

    def find(self, rows: Rows, config: VampoConfig) -> str | None:
        """What is wrong, or None."""
        return self.measure(rows, config, self.limit)


def _replay(rows: Rows, config: VampoConfig, limit: float) -> str | None:
    value = _last(rows, "replay_max_dev")
    if value is None or value <= limit:
        return None
    return (
        f"log-probabilities differ by up to {value:.2g} from those of the draws before any update, so ratios are off 1 "
        "where they must be 1"
    )


def _order(rows: Rows, config: VampoConfig, limit: float) -> str | None:
    value = _last(rows, "replay_mismatch")
    if value is None or value <= limit:
        return None
    return (
        f"draws that are followed again one by one get other advantages (1 - cosine = {value:.2g}): rewards belong to "
        "other rollouts of the group, or are not the same twice"
    )


def _flat(rows: Rows, config: VampoConfig, limit: float) -> str | None:
    share = _mean(rows, "zero_std_fraction", FEW)
    if share is None or share <= limit:
        return None
    return f"{share:.0%} of the groups have equal rewards (mean of {FEW} iterations), so there is nothing to compare"


def _rounding(rows: Rows, config: VampoConfig, limit: float) -> str | None:
    share = _mean(rows, "rounding_fraction", FEW)
    if share is None or share <= limit:
        return None
    return f"rewards in {share:.0%} of the groups differ by little more than rounding, which advantages then magnify"


def _clipped(rows: Rows, config: VampoConfig, limit: float) -> str | None:
    share = _mean(rows, "clip_fraction", FEW)
    if not share:
        return None
    epochs = config.grpo.num_inner_epochs
    share *= epochs / max(1, epochs - 1)  # ratios of the first one are 1
    if share <= limit:
        return None
    return (
        f"{share:.0%} of the ratios of later inner epochs lie outside of "
        f"grpo.clip_range = {config.grpo.clip_range:g} (mean of {FEW} iterations): these epochs teach hardly anything"
    )


def _drift(rows: Rows, config: VampoConfig, limit: float) -> str | None:
    value = _last(rows, "kl")
    if value is None or value <= limit:
        return None
    return f"the KL divergence from the base is {value:.2g}: the model has moved far from what was pretrained"


def _jump(rows: Rows, config: VampoConfig, limit: float) -> str | None:
    value = _last(rows, "approx_kl")
    if value is None or value <= limit:
        return None
    return f"the inner epochs of one iteration moved the model by a KL divergence of {value:.2g}"


def _gradient(rows: Rows, config: VampoConfig, limit: float) -> str | None:
    norms = [row["grad_norm"] for row in (*rows[:10], *rows[-10:]) if row.get("grad_norm") is not None]
    if len(rows) < 20 or len(norms) < 20:
        return None
    early, late = median(norms[:10]), median(norms[10:])
    if late <= limit * early or not early:
        return None
    return f"the gradient norm rose from {early:.2g} to {late:.2g} (medians of 10 iterations)"


def _held_out(rows: Rows, config: VampoConfig, limit: float) -> str | None:
    changed = changes_of(rows[-1])
    if not changed:
        return None
    name = _decisive(rows[-1], config)
    last_two = [row for row in rows if changes_of(row)][-2:]
    if any(name not in changes_of(row) or _outcome(row, name) != "worse" or _is_small(row, name) for row in last_two):
        return None
    error = "l1" if "l1" in changed else name
    is_wreck = rows[-1][f"eval_{error}"] > limit * _before(rows[-1], error)
    if len(last_two) < 2 and not is_wreck:  # one evaluation may be chance, or the first steps of an optimizer
        return None
    now = rows[-1][f"eval_{name}"]
    words = f"held-out {_title(name)} got worse than the base, from {now - changed[name].mean:.4g} to {now:.4g}"
    rewards = [row["reward_mean"] for row in rows if row.get("reward_mean") is not None]
    size = max(3, len(rewards) // 4)
    if len(rewards) >= 2 * size:
        early, late = fmean(rewards[:size]), fmean(rewards[-size:])
        words += f", while the reward in training went from {early:.4g} to {late:.4g}"
    better = [_title(other) for other in changed if other != name and _outcome(rows[-1], other) == "better"]
    return words + (f"; better: {'; '.join(better)}" if better else "")


def _overfit(rows: Rows, config: VampoConfig, limit: float) -> str | None:
    name = "action_l1" if "eval_action_l1" in rows[-1] else "l1"
    if "reward_mean" in rows[-1] or f"eval_{name}" not in rows[-1]:
        return None
    values = [row[f"eval_{name}"] for row in rows if row.get(f"eval_{name}") is not None]
    if len(values) < 3 or min(values[-2:]) <= limit * min(values[:-2]):
        return None
    return f"held-out {_title(name)} rose to {values[-1]:.4g} after {min(values[:-2]):.4g}: the training set is learned"


def _fooled(rows: Rows, config: VampoConfig, limit: float) -> str | None:
    if not {"decoder_error", "action_error"} <= changes_of(rows[-1]).keys():
        return None
    names = ("decoder_error", "action_error")
    if [_outcome(rows[-1], name) == "better" for name in names] != [True, False] or _is_small(rows[-1], names[0]):
        return None
    (old, new), (old_judged, judged) = ((_before(rows[-1], name), rows[-1][f"eval_{name}"]) for name in names)
    if 1 - judged / old_judged >= limit * (1 - new / old):
        return None
    return (
        f"the action error fell under the reward's decoder ({old:.4f} to {new:.4f}), but not clearly under the judge "
        f"({old_judged:.4f} to {judged:.4f}): the videos may be fooling the reward"
    )


def _slow(rows: Rows, config: VampoConfig, limit: float) -> str | None:
    if len(rows) % MANY:  # a look at long stretches now and then
        return None
    first = [_seconds(row) for row in rows[1 : MANY + 1]]  # without the first iteration, which warms up
    if len(rows) <= 2 * MANY or not all(first):
        return None
    size = max(MANY, round(LONG_ENOUGH_S / fmean(first)))
    if len(rows) <= 2 * size:
        return None
    early, late = (median(map(_seconds, part)) for part in (rows[1 : size + 1], rows[-size:]))
    if late <= limit * early:
        return None
    return f"an iteration takes {late:.3g} s, after {early:.3g} s at the beginning"


def _memory(rows: Rows, config: VampoConfig, limit: float) -> str | None:
    if len(rows) < MANY or "peak_memory_mb" not in rows[9]:
        return None
    begin, middle, end = rows[9], rows[(len(rows) + 9) // 2], rows[-1]
    first, half, last = (row["peak_memory_mb"] for row in (begin, middle, end))
    if last <= limit * first or min(half / first, last / half) <= 1 + (limit - 1) / 4:  # a jump is no leak
        return None
    return f"memory grows: {first:.0f} MiB at iteration {begin['iteration']}, {half:.0f} half-way, {last:.0f} now"


def _starved(rows: Rows, config: VampoConfig, limit: float) -> str | None:
    waited, total, number = 0.0, 0.0, 0
    for row in reversed(rows[1:]):  # without the first iteration, which starts the workers
        if "data_s" not in row or (number >= 10 and total >= NOTICEABLE_S):
            break
        waited, total, number = waited + row["data_s"], total + _seconds(row), number + 1
    if number < 10 or total < NOTICEABLE_S or waited <= limit * total:
        return None
    return f"{waited / total:.0%} of the time goes into waiting for data ({waited / number:.2g} s an iteration)"


CHECKS = (
    Check(
        "ratios off 1",
        1e-3,
        _replay,
        "In float16, set model.dtype=bfloat16; otherwise a changed sampler or denoiser replays other noise levels than "
        "it drew with: compare sampler.* and sampler.stochastic_steps with sampler.stochastic_steps=[0]",
    ),
    Check(
        "order of the group",
        0.02,
        _order,
        "Look at reward_funcs: a reward [B, G, F] must keep the order of pred, and must not draw at random; with the "
        "built-in rewards, set sampler.tail_dtype=null",
    ),
    Check(
        "no spread",
        0.9,
        _flat,
        "Choose rewards that tell videos apart (reward.*_weight, reward_funcs), or set grpo.credit=pathwise, which "
        "compares nothing",
    ),
    Check(
        "rounding",
        0.5,
        _rounding,
        "Take constants and very large terms out of reward_funcs, raise reward weights that tell videos apart, or set "
        "sampler.eta higher so that draws differ more",
    ),
    Check(
        "clipped ratios",
        0.9,
        _clipped,
        "Lower optim.lr or grpo.num_inner_epochs, or raise grpo.clip_range",
    ),
    Check(
        "KL of an iteration",
        0.01,
        _jump,
        "Lower optim.lr or grpo.num_inner_epochs",
    ),
    Check(
        "KL from the base",
        3.0,
        _drift,
        "Lower optim.lr or grpo.num_iterations, or raise grpo.kl_coef or grpo.anchor_coef",
    ),
    Check(
        "gradient norm",
        10.0,
        _gradient,
        "Lower the learning rate (optim.lr, pretrain.lr, policy.lr, decoder.lr), or raise its warmup_steps",
    ),
    Check(
        "held-out worse",
        1.25,
        _held_out,
        "Lower optim.lr, raise grpo.batch_size, grpo.kl_coef or grpo.anchor_coef, or choose the checkpoint by what is "
        "trained for (evaluation.best_by); checkpoints/best keeps the best one",
    ),
    Check(
        "overfitting",
        1.05,
        _overfit,
        "Use more episodes (data.num_episodes, data.root) or fewer num_steps; checkpoints/best keeps the best one",
    ),
    Check(
        "fooled decoder",
        0.5,
        _fooled,
        "Raise reward.l1_weight or grpo.kl_coef, train the decoder on more episodes (data.num_episodes, "
        "decoder.num_steps), or set evaluation.best_by=action_error",
    ),
    Check(
        "throughput",
        3.0,
        _slow,
        "See what else uses the machine (nvidia-smi, top); on a shared one, set run.num_threads to the cores that are "
        "yours",
    ),
    Check(
        "memory",
        1.5,
        _memory,
        "Look for results that reward_funcs or callbacks keep; until then, save often (run.save_every) and go "
        "on with --continue",
    ),
    Check(
        "starved loader",
        0.5,
        _starved,
        "Raise data.num_workers, put data.root or data.cache on a faster disk, or run `vampo encode` first",
    ),
)
"""Every check, in the order in which they are to be looked into."""


def _last(rows: Rows, name: str) -> float | None:
    return rows[-1].get(name)


def _mean(rows: Rows, name: str, size: int) -> float | None:
    """Mean over the last rows; None where there are too few, or one lacks it."""
    values = [row.get(name) for row in rows[-size:]]
    return None if len(rows) < size or None in values else fmean(values)  # type: ignore[arg-type]


def _seconds(row: Mapping[str, Any]) -> float:
    """Duration of an iteration: its phases together."""
    return sum(row.get(name, 0.0) for name in ("data_s", "rollout_s", "reward_s", "update_s"))


def _decisive(row: Mapping[str, Any], config: VampoConfig) -> str:
    """The held-out metric that chooses the best checkpoint, as far as it is measured."""
    if "eval_action_l1" in row:
        return "action_l1"
    best_by, reward = config.evaluation.best_by, config.reward
    if best_by != "reward" and f"eval_{best_by}" in row:
        return best_by
    if bool(reward.l1_weight) == bool(reward.cosine_weight):
        return "reward"
    return "l1" if reward.l1_weight else "cosine"


def _title(metric: str) -> str:
    title = METRICS[metric].title
    return title if title[1:2].isupper() else title[:1].lower() + title[1:]


def _before(row: Mapping[str, Any], name: str) -> float:
    """The base's value of a held-out metric."""
    return row[f"eval_{name}"] - changes_of(row)[name].mean


def _is_small(row: Mapping[str, Any], name: str) -> bool:
    """Whether a held-out metric hardly changed: with few episodes even that may seem clear."""
    return abs(changes_of(row)[name].mean) < SMALL * abs(_before(row, name))


def _outcome(row: Mapping[str, Any], name: str) -> str:
    """Whether a held-out metric is clearly better or worse than the base's."""
    return direction(name, changes_of(row)[name].ci95, before=_before(row, name), after=row[f"eval_{name}"])
