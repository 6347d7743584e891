"""What better predictions do for the robot: success of policies on base and VAMPO features, and of a control.

    python benchmarks/chain.py --config metaworld [--seeds 0 1 2] [--results FOLDER] [-- key=value ...]

Each seed is a whole chain: predictor, VAMPO and policies are trained again from one recorded dataset. Every policy acts
in the same episodes, whose object positions no policy was trained on, and a second time with instructions in words that
it was never trained on (``rephrased.py``). A second call continues the first.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import rephrased
import torch
from report import environment

import vampo_core
from vampo_core import envs
from vampo_core.config import VampoConfig, load_config
from vampo_core.evaluation.episodes import ClosedLoopResult
from vampo_core.evaluation.statistics import Metric, bootstrap
from vampo_core.pipeline.chain import DESCRIPTIONS, EXPERT, POLICIES
from vampo_core.pipeline.closed_loop import require_simulator


def run_seed(config: VampoConfig) -> dict[str, Any]:
    """One chain, and its policies under instructions in other words."""
    chain = vampo_core.run_chain(config)
    words = ",".join(f"rephrased:make/{name}" for name in envs.split_names(require_simulator(config)))
    in_other_words = load_config(config, f"closed_loop.env={words}", "closed_loop.num_videos=0")
    output = Path(config.run.dir).parent / "rephrased"
    results = {}
    for name, loop in chain.closed_loop.items():
        results[name] = {"closed_loop": without_latencies(loop)}
        if name in POLICIES:
            folder = chain.folders[f"policy-{name}"]
            rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
            again = vampo_core.evaluate_policy(folder, in_other_words, output=output)
            results[name] |= {
                "updates": len(rows),
                "minutes": sum(row["update_s"] for row in rows) / 60,
                "action_l1": chain.policies[name].action_l1.mean,
                "rephrased": without_latencies(again),
            }
    video = {key: getattr(chain, key) for key in ("base", "vampo")}
    return {
        "policies": results,
        "video": {key: {"l1": x.l1.mean, "cosine": x.cosine.mean, "reward": x.reward.mean} for key, x in video.items()},
    }


def without_latencies(result: ClosedLoopResult) -> dict[str, Any]:
    """A result as plain values; percentiles of the latencies say enough."""
    values = result.to_dict()
    for episode in values["episodes"]:
        del episode["latencies_ms"]
    return values


def over_seeds(loops: Sequence[dict], value: Callable[[dict], float], before: Sequence[dict] | None = None) -> Metric:
    """Mean over seeds and episodes, minus that of ``before``; episodes, which all seeds share, are resampled."""
    tables = [
        {(e["env"], e["seed"]): sign * value(e) for e in loop["episodes"]}
        for sign, part in ((1, loops), (-1, before or []))
        for loop in part
    ]
    keys = list(tables[0])
    return bootstrap([sum(table[key] for table in tables) / len(loops) for key in keys], [str(key) for key in keys])


def markdown(seeds: dict[str, dict], head: str) -> str:
    """Success of every policy over all seeds, by task, and by seed."""
    names = list(next(iter(seeds.values()))["policies"])
    of = {name: [seed["policies"][name] for seed in seeds.values()] for name in names}
    loops = {name: [policy["closed_loop"] for policy in of[name]] for name in names}
    count = loops["base"][0]["num_episodes"]
    has_coverage = loops["base"][0]["max_coverage"] is not None
    measures = {"success": lambda e: float(e["success"])}
    if has_coverage:
        measures["largest coverage"] = lambda e: e["max_coverage"]
    lines = [
        head, "",
        f"Training seeds {', '.join(seeds)}; {count} episodes for every policy of every seed. Differences (Δ) from the "
        "policy on the base's features are paired by episode. 95 % intervals resample episodes, not training seeds. "
        "Minutes are those of the updates.",
        "",
    ]  # fmt: skip
    columns = [
        "updates",
        "minutes",
        "action L1",
        *(f"{m}{d}" for m in measures for d in ("", " Δ")),
        "other words",
        "other words Δ",
        "Hz",
    ]
    lines += table(["policy", *columns], [row(name, of, loops, measures) for name in names])
    tasks = list(loops["base"][0]["success_by_env"])
    if len(tasks) > 1:
        rates = [[name, *(percent(success(loops[name], task)) for task in tasks)] for name in names]
        lines += ["", *table(["success", *(task.rpartition("/")[2] for task in tasks)], rates)]
    by_seed = [
        [seed, *(percent(values["policies"][name]["closed_loop"]["success"]["mean"]) for name in names),
         *(f"{values['video'][name]['l1']:.4f}" for name in ("base", "vampo"))]
        for seed, values in seeds.items()
    ]  # fmt: skip
    lines += ["", *table(["seed", *(f"{name}: success" for name in names), "video L1: base", "VAMPO"], by_seed)]
    return "\n".join([*lines, "", *(f"- **{name}**: {DESCRIPTIONS[name]}." for name in names)]) + "\n"


def row(name: str, of: dict[str, list], loops: dict[str, list], measures: dict[str, Callable]) -> list[str]:
    """A policy's line of the first table."""
    cells = [""] * 3 if name == EXPERT else [
        f"{statistics.fmean(policy[key] for policy in of[name]):.{digits}f}"
        for key, digits in (("updates", 0), ("minutes", 1), ("action_l1", 4))
    ]  # fmt: skip
    for value in measures.values():
        cells += with_difference(name, loops, value)
    if name == EXPERT:
        return [name, *cells, "", "", ""]
    rephrased = {key: [policy["rephrased"] for policy in of[key]] for key in ("base", name)}
    cells += with_difference(name, rephrased, measures["success"])
    hz = statistics.fmean(loop["latency"]["hz"] for loop in loops[name])
    return [name, *cells, f"{hz:.0f}"]


def with_difference(name: str, loops: dict[str, list], value: Callable[[dict], float]) -> list[str]:
    """A policy's mean, and how it differs from that of the policy on the base's features."""
    shown = name not in ("base", EXPERT)
    difference = interval(over_seeds(loops[name], value, loops["base"]), sign="+") if shown else ""
    return [interval(over_seeds(loops[name], value)), difference]


def success(loops: Sequence[dict], task: str) -> float:
    """Rate of one task, over seeds."""
    return statistics.fmean(loop["success_by_env"][task]["mean"] for loop in loops)


def percent(rate: float) -> str:
    return f"{rate:.0%}"


def interval(metric: Metric, *, sign: str = "") -> str:
    return f"{metric:{sign}.2f}"


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="metaworld", help="preset or file")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, help="folder of all runs (default: runs/chain-<config>)")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of all runs")
    args = parser.parse_args()

    name = Path(args.config).stem
    folder = args.folder or Path("runs") / f"chain-{name}"
    config = load_config(args.config, *args.overrides)
    for env in envs.split_names(require_simulator(config)):
        rephrased.make(env).close()  # fails now rather than hours later
    for seed in args.seeds:
        print(f"seed {seed}", flush=True)
        seeded = load_config(config, f"run.seed={seed}", f"run.dir={folder / f'seed-{seed}' / 'run'}")
        values = run_seed(seeded)
        (folder / f"seed-{seed}.json").write_text(json.dumps(values) + "\n")
    seeds = {str(seed): json.loads((folder / f"seed-{seed}.json").read_text()) for seed in args.seeds}
    where = environment("cuda" if torch.cuda.is_available() else "cpu")
    head = f"{where['machine']}, torch {where['torch']}, commit {where['commit']}, {where['date']}"
    args.results.mkdir(parents=True, exist_ok=True)
    result = {"environment": where, "config": config.to_dict(), "seeds": seeds}
    (args.results / f"chain-{name}-{where['device']}.json").write_text(json.dumps(result) + "\n")
    text = markdown(seeds, head)
    (args.results / f"chain-{name}-{where['device']}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
