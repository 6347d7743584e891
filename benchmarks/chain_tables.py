"""Tables of ``chain.py``: success pooled over training seeds, paired with the base, and which metric predicts it.

Intervals (95 %) are of a crossed bootstrap: training seeds and episodes are resampled independently of each other,
episodes within their simulator. All policies of a seed stay together, and so do all seeds of an episode, because they
share its object positions. An interval thus speaks for other seeds and other episodes, as far as three seeds can.
Source: Owen 2007, The pigeonhole bootstrap, Annals of Applied Statistics 1.
"""

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from vampo_core.config import ChainConfig
from vampo_core.evaluation.metrics import METRICS
from vampo_core.evaluation.statistics import NUM_RESAMPLES, Metric
from vampo_core.report.headline import POLICY_TITLES

Measure = Callable[[dict], float]


def success(episode: dict) -> float:
    return float(episode["success"])


def coverage(episode: dict) -> float:
    return episode["max_coverage"]


def pooled(loops: Sequence[dict], measure: Measure = success, before: Sequence[dict] | None = None) -> Metric:
    """Mean of a measure over seeds and episodes, minus that of ``before`` in the same ones.

    Args:
        loops: closed-loop results, one of each training seed.
        measure: what counts of an episode.
        before: results to compare with, in the same order of seeds.

    Raises:
        ValueError: the seeds have different episodes.
    """
    keys = [(episode["env"], episode["seed"]) for episode in loops[0]["episodes"]]
    values = _table(loops, keys, measure)
    if before is not None:
        values = values - _table(before, keys, measure)
    return crossed_bootstrap(values, [env for env, _ in keys])


def crossed_bootstrap(values: np.ndarray, strata: Sequence[str], *, seed: int = 0) -> Metric:
    """Mean and percentile interval of a table ``[S, E]`` of seeds and episodes, each resampled with replacement.

    Args:
        values: one number for each seed and episode.
        strata: simulator of each episode ``[E]``; resamples keep the number of episodes of each.
        seed: seed of the resampling.
    """
    rng, num_seeds = np.random.default_rng(seed), len(values)
    groups = [np.flatnonzero(np.asarray(strata) == name) for name in dict.fromkeys(strata)]
    means = np.empty(NUM_RESAMPLES)
    for i in range(NUM_RESAMPLES):
        episodes = np.concatenate([rng.choice(group, len(group)) for group in groups])
        means[i] = values[rng.integers(num_seeds, size=num_seeds)][:, episodes].mean()
    return Metric.from_dict(
        {"mean": float(values.mean()), "ci95": [float(x) for x in np.percentile(means, [2.5, 97.5])]}
    )


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's rank correlation, ties with their mean rank; nan where one side is constant."""
    a, b = _ranks(x), _ranks(y)
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def markdown(seeds: Mapping[str, dict], chain: ChainConfig, head: str) -> str:
    """All tables.

    Args:
        seeds: records of ``chain.run_seed`` by training seed.
        chain: what was compared.
        head: first line.
    """
    loops = {
        name: [seed["policies"][name]["closed_loop"] for seed in seeds.values()]
        for name in next(iter(seeds.values()))["policies"]
    }
    first = next(iter(loops.values()))[0]
    parts = [
        f"{head}\n\nTraining seeds {', '.join(seeds)}; {first['num_episodes']} episodes for every policy of every "
        "seed. Differences (Δ, points) are from the same policy on the base, for the control from the first row, "
        "paired by seed and episode. 95 % intervals resample training seeds and episodes.",
        _success_table(chain, loops),
        _task_table(loops),
        _seed_table(chain, seeds, loops),
        _metric_table(seeds),
        _correlation_table(chain, seeds),
        _training_table(seeds, loops),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _success_table(chain: ChainConfig, loops: Mapping[str, Sequence[dict]]) -> str:
    has_coverage = next(iter(loops.values()))[0]["max_coverage"] is not None
    rows = []
    for name, of in loops.items():
        reference = chain.reference(name) if name in chain.controllers else None
        arm, kind = chain.controllers.get(name, ("", None))
        row = ["" if kind == "latents" else arm, name if kind is None else POLICY_TITLES[kind], _percent(pooled(of))]
        row.append("" if reference is None else _points(pooled(of, before=loops[reference])))
        if has_coverage:
            row.append(f"{pooled(of, coverage):.2f}")
            row.append("" if reference is None else f"{pooled(of, coverage, loops[reference]):+.2f}")
        rows.append(row)
    columns = ["success, %", "Δ"] + (["largest coverage", "Δ coverage"] if has_coverage else [])
    return _lines(["arm", "policy", *columns], rows)


def _task_table(loops: Mapping[str, Sequence[dict]]) -> str:
    tasks = list(next(iter(loops.values()))[0]["success_by_env"])
    if len(tasks) < 2:
        return ""

    def rate(of: Sequence[dict], task: str) -> str:
        return f"{100 * statistics.fmean(loop['success_by_env'][task]['mean'] for loop in of):.0f}"

    rows = [[name, *(rate(of, task) for task in tasks)] for name, of in loops.items()]
    return _lines(["success by task, %", *(task.rpartition("/")[2] for task in tasks)], rows)


def _seed_table(chain: ChainConfig, seeds: Mapping[str, dict], loops: Mapping[str, Sequence[dict]]) -> str:
    rows = []
    for i, seed in enumerate(seeds):
        rates = {name: 100 * of[i]["success"]["mean"] for name, of in loops.items()}
        row = [seed]
        for name, value in rates.items():
            reference = chain.reference(name) if name in chain.controllers else None
            row.append(f"{value:.0f}" + ("" if reference is None else f" ({value - rates[reference]:+.0f})"))
        rows.append(row)
    return _lines(["success by seed, % (Δ)", *loops], rows)


def _metric_table(seeds: Mapping[str, dict]) -> str:
    """Held-out metrics of arms: means over seeds, and their change against the base."""
    arms = {name: [seed["arms"][name] for seed in seeds.values()] for name in next(iter(seeds.values()))["arms"]}
    names = [name for name in METRICS if any(name in of[0]["metrics"] for of in arms.values())]
    rows = []
    for arm, of in arms.items():
        steps = statistics.fmean(record["steps"] for record in of)
        row = [arm, f"{steps:.0f} {of[0]['unit']}s" if of[0]["unit"] else ""]
        for name in names:
            pairs = [(x["metrics"].get(name), y["metrics"].get(name)) for x, y in zip(arms["base"], of, strict=True)]
            if any(after is None for _, after in pairs):
                row.append("")
                continue
            mean = statistics.fmean(after for _, after in pairs)
            cell = f"{mean:{METRICS[name].spec}}"
            if arm != "base" and all(before is not None for before, _ in pairs):
                cell += f" ({statistics.fmean(after - before for before, after in pairs):+{METRICS[name].spec}})"
            row.append(cell)
        rows.append(row)
    return _lines(["held out (Δ)", "best checkpoint", *names], rows)


def _correlation_table(chain: ChainConfig, seeds: Mapping[str, dict]) -> str:
    """Which held-out metric orders arms as their success does."""
    kinds = [kind for kind in chain.policies if kind != "latents"]
    name_of = {key: name for name, key in chain.controllers.items()}
    arms = [arm for arm in chain.arms if arm != "base_scaled"]  # its video is the base's, its actions are not
    measured = [set(seed["arms"][arm]["metrics"]) for seed in seeds.values() for arm in arms]
    if len(arms) < 2:
        return ""
    rows = []
    for metric in (name for name in METRICS if all(name in names for names in measured)):
        row = [METRICS[metric].title]
        for kind in kinds:
            points = [
                [(seed["arms"][arm]["metrics"][metric], _rate(seed, name_of[arm, kind])) for arm in arms]
                for seed in seeds.values()
            ]
            better = 1 if METRICS[metric].higher_is_better else -1
            every = better * rank_correlation(*zip(*itertools.chain(*points), strict=True))
            within = [better * rank_correlation(*zip(*part, strict=True)) for part in points]
            row += [f"{every:+.2f}", f"{statistics.fmean(within):+.2f}"]
        rows.append(row)
    heads = [cell for kind in kinds for cell in (f"{kind}: all arms and seeds", "within a seed, mean")]
    note = (
        f"Rank correlation (Spearman) of held-out metrics with success, over {len(arms)} arms and {len(seeds)} seeds; "
        "positive where a better value goes with more success."
    )
    return f"{note}\n\n{_lines(['metric', *heads], rows)}"


def _rate(seed: dict, name: str) -> float:
    return seed["policies"][name]["closed_loop"]["success"]["mean"]


def _training_table(seeds: Mapping[str, dict], loops: Mapping[str, Sequence[dict]]) -> str:
    """Training of the policies that were trained, and the control rate of all."""
    rows = []
    for name, of in loops.items():
        policies = [seed["policies"][name] for seed in seeds.values()]
        if of[0]["latency"] is None:
            continue
        row = [name]
        for key, digits in (("updates", 0), ("minutes", 1), ("action_l1", 4)):
            has = all(key in policy for policy in policies)
            row.append(f"{statistics.fmean(policy[key] for policy in policies):.{digits}f}" if has else "")
        again = [policy["rephrased"] for policy in policies if "rephrased" in policy]
        row.append(_percent(pooled(again)) if again else "")
        row.append(f"{statistics.fmean(loop['latency']['hz'] for loop in of):.0f}")
        rows.append(row)
    return _lines(["training", "updates", "minutes", "action L1", "success in other words, %", "Hz"], rows)


def _table(loops: Sequence[dict], keys: Sequence[tuple[str, int]], measure: Measure) -> np.ndarray:
    """A measure by seed and episode ``[S, E]``."""
    rows = []
    for loop in loops:
        of = {(episode["env"], episode["seed"]): measure(episode) for episode in loop["episodes"]}
        if of.keys() != set(keys):
            raise ValueError(f"a seed has {len(of)} episodes, expected the same {len(keys)} for all seeds")
        rows.append([of[key] for key in keys])
    return np.array(rows, dtype=np.float64)


def _ranks(values: Sequence[float]) -> np.ndarray:
    """Ranks from 0, equal values with their mean rank."""
    data = np.asarray(values, dtype=np.float64)
    return (data[:, None] > data).sum(1) + ((data[:, None] == data).sum(1) - 1) / 2


def _percent(rate: Metric) -> str:
    return f"{_scaled(rate):.0f}"


def _points(difference: Metric) -> str:
    return f"{_scaled(difference):+.1f}"


def _scaled(metric: Metric) -> Metric:
    """In per cent."""
    return Metric(100 * metric.mean, metric.ci95 and (100 * metric.ci95[0], 100 * metric.ci95[1]))


def _lines(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))
