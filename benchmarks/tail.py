"""What a cheaper tail costs: the same groups with the reference tail (Euler, every step) and with cheaper ones.

    python benchmarks/tail.py --checkpoint FOLDER [--config metaworld] [--steps 8] [--stochastic-step 0]
        [--generations 8] [--clips 16] [--rounds 3] [--results FOLDER]
        [--tail "sampler.solver=dpm++2m sampler.tail_steps=2"]... [-- key=value ...]

What happens behind the stochastic step may be computed in any way: it biases the reward, never the ratio. Groups are
drawn once, and every tail finishes the same draws. The correlation of a tail's advantages with the reference's says how
much of the comparison within a group survives; the difference of rewards says by how much all of them move. Tails take
turns, so that a slow moment of the machine meets them all.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from report import environment, provenance
from torch import Tensor

from vampo_core.config import VampoConfig, load_config
from vampo_core.evaluation.predictor import held_out_batch
from vampo_core.evaluation.statistics import Metric, bootstrap
from vampo_core.grpo.advantages import credited_advantages
from vampo_core.grpo.rewards import configured_rewards, evaluate_rewards
from vampo_core.grpo.rollout import GroupRollout, RolloutEngine
from vampo_core.models.float8 import check_float8
from vampo_core.models.predictor import VideoPredictor
from vampo_core.pipeline.clips import prepare_clips
from vampo_core.pipeline.decoders import reward_decoders
from vampo_core.pipeline.predictor import inference_predictor

REFERENCE = ("sampler.solver=euler", "sampler.tail_steps=null", "sampler.tail_dtype=null")
DEFAULT_TAILS = (
    "sampler.tail_steps=2",  # the same for every solver: the first step has no history, the last one goes to 0
    *(f"sampler.solver={solver} sampler.tail_steps={n}" for n in (3, 4) for solver in ("euler", "dpm++2m", "unipc")),
    "sampler.tail_dtype=bfloat16",
)
FLOAT8 = (
    "sampler.tail_dtype=float8"  # where the device has it; on a CPU it may be asked for, but only its numbers count
)
SEED = 0


@dataclass(frozen=True)
class Row:
    """One tail against the reference."""

    tail: str
    num_steps: int  # behind the stochastic step
    correlation: float  # of advantages, over clips, generations and frames
    reward: Metric  # mean of all rewards minus the reference's, over episodes
    seconds: float  # median over rounds
    speed_up: float  # the reference's time over this one's, median over rounds


class Tail:
    """A way to finish draws."""

    def __init__(self, model: VideoPredictor, config: VampoConfig) -> None:
        self.sampler = model.sampler(**config.sampler.overrides(cheap_tail=True))
        self.engine = RolloutEngine(
            model,
            self.sampler,
            num_generations=config.grpo.num_generations,
            chunk_size=config.sampler.tail_chunk_size,
            reuse_first_step=True,
            tail_dtype=config.sampler.tail_dtype,
        )

    def finish(self, drawn: GroupRollout) -> Tensor:  # [B, G, F, C, h, w]
        """The videos of these draws."""
        denoise = self.engine.environment(drawn.condition)
        return self.sampler.tail(drawn.steps[0].prev_sample, denoise, chunk_size=self.engine.chunk_size).latents


def compare(
    model: VideoPredictor, config: VampoConfig, tails: Sequence[str], *, clips: int, rounds: int
) -> tuple[list[Row], int]:
    """Every tail against the reference, on held-out clips; and the number of these."""
    configs = [load_config(config, *REFERENCE, *tail.split()) for tail in ("", *tails)]
    candidates = [Tail(model, each) for each in configs]
    data = prepare_clips(config, model.codec)
    batch = held_out_batch(data.held_out, clips)
    rewards = configured_rewards(config.reward, model.codec, reward_decoders(config, model.codec, data))
    drawn = candidates[0].engine.rollout(batch, seed=SEED)
    target = batch["latents"].to(drawn.latents)
    seconds: list[list[float]] = [[] for _ in candidates]
    totals: list[Tensor] = []
    for number in range(rounds + 1):  # the first is not timed
        for index in range(len(candidates)):
            place = (index + number) % len(candidates)  # 0, 1, 2... in the first round
            begin = time.perf_counter()
            videos = candidates[place].finish(drawn)
            if videos.is_cuda:
                torch.cuda.synchronize()
            if number:
                seconds[place].append(time.perf_counter() - begin)
            else:
                totals.append(evaluate_rewards(rewards, videos, target, batch).total)
    grpo = config.grpo
    advantages = [credited_advantages(total, credit=grpo.credit, clip=grpo.adv_clip_max) for total in totals]
    rows = []
    for place, tail in enumerate(tails, start=1):
        pair = torch.stack([advantages[0].flatten(), advantages[place].flatten()]).double()
        rows.append(
            Row(
                tail=tail,
                num_steps=candidates[place].sampler.num_steps - candidates[place].sampler.first_stochastic_step - 1,
                correlation=float(torch.corrcoef(pair)[0, 1]),
                reward=bootstrap((totals[place] - totals[0]).mean((1, 2)).tolist(), batch["episode_id"]),
                seconds=statistics.median(seconds[place]),
                speed_up=statistics.median(a / b for a, b in zip(seconds[0], seconds[place], strict=True)),
            )
        )
    return rows, len(batch["episode_id"])


def markdown(rows: Sequence[Row], head: str, config: VampoConfig, sampler: str, num_clips: int) -> str:
    """The table: one row for each tail."""
    lines = [
        head, "",
        f"{num_clips} held-out clips, {config.grpo.num_generations} generations, {sampler}. Correlation of advantages "
        "with those of the reference tail on the same draws; difference of the mean reward, over episodes.",
        "",
        "| tail | steps | correlation | reward | seconds | speed-up |",
        "| --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for row in rows:
        name = row.tail.replace("sampler.", "")
        reward = f"{row.reward.mean:+.4f}{row.reward.interval('+.4f', before=' ')}"
        cells = [f"`{name}`", str(row.num_steps), f"{row.correlation:.3f}", reward]
        lines.append(f"| {' | '.join([*cells, f'{row.seconds:.2f}', f'{row.speed_up:.2f}'])} |")
    return "\n".join(lines) + "\n"


def _has_float8(device: torch.device) -> bool:
    try:
        check_float8(device)
    except (ValueError, ImportError):
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="model folder, checkpoint or run folder")
    parser.add_argument("--config", default="metaworld")
    parser.add_argument("--steps", type=int, default=8, help="sampling steps")
    parser.add_argument("--stochastic-step", type=int, default=0)
    parser.add_argument("--generations", type=int, default=8, help="draws of a clip, whose advantages are compared")
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3, help="timed runs of every tail")
    parser.add_argument("--tail", action="append", help="settings of a cheaper tail; may be given several times")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of the configuration")
    args = parser.parse_args()

    drawn = [f"sampler.num_inference_steps={args.steps}", f"sampler.stochastic_steps=[{args.stochastic_step}]"]
    compared = [f"grpo.num_generations={args.generations}", "grpo.credit=frame"]
    config = load_config(args.config, *drawn, *compared, *args.overrides)
    model = inference_predictor(config, args.checkpoint)
    device = model.device.type
    where = environment(device)
    tails = args.tail or [*DEFAULT_TAILS, *([FLOAT8] if _has_float8(model.device) else [])]
    rows, num_clips = compare(model, config, tails, clips=args.clips, rounds=args.rounds)
    sampler = model.sampler(**config.sampler.overrides())
    what = f"{sampler.num_inference_steps} steps, stochastic step {sampler.first_stochastic_step}"
    head = provenance(where)
    table = markdown(rows, head, config, what, num_clips)
    args.results.mkdir(parents=True, exist_ok=True)
    name = f"tail-t{sampler.num_inference_steps}-k{sampler.first_stochastic_step}-{device}"
    result = {"environment": where, "config": config.to_dict(), "num_clips": num_clips}
    (args.results / f"{name}.json").write_text(json.dumps(result | {"rows": [asdict(row) for row in rows]}) + "\n")
    (args.results / f"{name}.md").write_text(table)
    print(table)


if __name__ == "__main__":
    main()
