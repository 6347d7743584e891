"""What better predictions do for the robot: success of every arm of a chain under every policy, over training seeds.

    python benchmarks/chain.py --config metaworld [--seeds 0 1 2] [--results FOLDER] [--other-words] [-- key=value ...]

Each seed is a whole chain: predictors and policies are trained again from one recorded dataset; ``chain.arms`` and
``chain.policies`` say which. Every policy acts in the same episodes, whose object positions no policy was trained on;
with ``--other-words`` trained policies act a second time with instructions in words that they were never trained on
(``rephrased.py``). A second call continues the first. ``chain_tables.py`` says how seeds are pooled.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import chain_tables
import rephrased
import torch
from report import environment, provenance

import vampo_core
from vampo_core import envs
from vampo_core.config import VampoConfig, load_config
from vampo_core.evaluation.episodes import ClosedLoopResult
from vampo_core.pipeline.chain import ChainResult
from vampo_core.pipeline.closed_loop import require_simulator


def run_seed(config: VampoConfig, *, other_words: bool) -> dict[str, Any]:
    """One chain, and with ``other_words`` its trained policies under instructions in other words."""
    chain = vampo_core.run_chain(config)
    policies = {}
    for name, loop in chain.closed_loop.items():
        arm, kind = config.chain.controllers.get(name, (None, None))
        policies[name] = {"arm": arm, "kind": kind, "closed_loop": without_latencies(loop)}
        if name in chain.policies:
            folder = chain.folders[f"policy-{name}"]
            rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
            policies[name] |= {
                "updates": len(rows),
                "minutes": sum(row.get("data_s", 0.0) + row["update_s"] for row in rows) / 60,
                "action_l1": chain.policies[name].action_l1.mean,
            }
            if other_words:
                policies[name]["rephrased"] = in_other_words(config, folder)
    return {"policies": policies, "arms": {name: arm_record(chain, name) for name in chain.arms}}


def arm_record(chain: ChainResult, name: str) -> dict[str, Any]:
    """Held-out metrics of an arm, and the length of its training."""
    arm = chain.arms[name]
    metrics: Mapping[str, Any] = arm.evaluation.metrics
    means = {metric: value.mean for metric, value in metrics.items()}
    return {"title": arm.title, "steps": arm.num_steps, "unit": arm.unit, "metrics": means}


def in_other_words(config: VampoConfig, folder: Path) -> dict[str, Any]:
    """Episodes of a policy with rephrased instructions."""
    words = ",".join(f"rephrased:make/{name}" for name in envs.split_names(require_simulator(config)))
    changed = load_config(config, f"closed_loop.env={words}", "closed_loop.num_videos=0")
    output = Path(config.run.dir).parent / "rephrased"
    return without_latencies(vampo_core.evaluate_policy(folder, changed, output=output))


def without_latencies(result: ClosedLoopResult) -> dict[str, Any]:
    """A result as plain values; percentiles of the latencies say enough."""
    values = result.to_dict()
    for episode in values["episodes"]:
        del episode["latencies_ms"]
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="metaworld", help="preset or file")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, help="folder of all runs (default: runs/chain-<config>)")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--other-words", action="store_true", help="let policies act with rephrased instructions, too")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of all runs")
    args = parser.parse_args()

    name = Path(args.config).stem
    folder = args.folder or Path("runs") / f"chain-{name}"
    config = load_config(args.config, *args.overrides)
    for env in envs.split_names(require_simulator(config)) if args.other_words else ():
        rephrased.make(env).close()  # fails now rather than hours later
    for seed in args.seeds:
        print(f"seed {seed}", flush=True)
        seeded = load_config(config, f"run.seed={seed}", f"run.dir={folder / f'seed-{seed}' / 'run'}")
        values = run_seed(seeded, other_words=args.other_words)
        (folder / f"seed-{seed}.json").write_text(json.dumps(values) + "\n")
    seeds = {str(seed): json.loads((folder / f"seed-{seed}.json").read_text()) for seed in args.seeds}
    where = environment("cuda" if torch.cuda.is_available() else "cpu")
    head = provenance(where)
    args.results.mkdir(parents=True, exist_ok=True)
    result = {"environment": where, "config": config.to_dict(), "seeds": seeds}
    (args.results / f"chain-{name}-{where['device']}.json").write_text(json.dumps(result) + "\n")
    text = chain_tables.markdown(seeds, config.chain, head)
    (args.results / f"chain-{name}-{where['device']}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
