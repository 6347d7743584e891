"""The arms of a chain: how each one's predictor is made from the base."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

from vampo_core.config import RewardConfig, VampoConfig, deciding
from vampo_core.config.chain_section import ArmName
from vampo_core.diffusion.settings import EulerHybridSettings
from vampo_core.evaluation.predictor import EvalResult
from vampo_core.grpo.cost import forwards_per_iteration, likelihood_updates
from vampo_core.pipeline.runs import PRETRAINING, VAMPO, RunKind

_LR_SHARE, _WARMUP_STEPS = 0.2, 20  # of continued pretraining
_GROUP_SIZE, _PAPER_LR = 16, 4e-5  # of the paper's arm; 1.5e-4 lowers held-out rewards of MetaWorld


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way from the base to a predictor, or from its predictor to actions."""

    title: str
    """Name for people."""
    kind: RunKind[EvalResult] | None = None
    """Training of the predictor; None for the base's own weights."""
    configure: Callable[[VampoConfig, EulerHybridSettings], VampoConfig] = lambda config, sampler: config
    """Settings of that training, from those of the chain and the base's sampler."""
    scales_actions: bool = False
    """Whether decoded actions are made as long as the expert's."""

    def decided_by(self, config: VampoConfig) -> Any:
        """Settings that decide the trained predictor: its training, and how its best checkpoint is chosen."""
        best = deciding(config, "vampo")
        if self.kind is VAMPO:
            return best
        loop = ("grpo.", "optim.")  # likelihood training knows no iterations
        return [deciding(config, "base"), {key: x for key, x in best.items() if not key.startswith(loop)}]


def same_compute(config: VampoConfig, sampler: EulerHybridSettings) -> VampoConfig:
    """Continue pretraining for as many denoiser forwards as VAMPO takes, and evaluate it as often.

    The learning rate is a fifth of the pretraining's and falls to 0.
    """
    grpo, pretrain = config.grpo, config.pretrain
    num_forwards = grpo.num_iterations * forwards_per_iteration(grpo, sampler)
    num_steps = likelihood_updates(num_forwards, batch_size=pretrain.batch_size)
    num_evaluations = -(-grpo.num_iterations // config.run.eval_every)
    every = -(-num_steps // num_evaluations)
    changed = replace(
        pretrain,
        num_steps=num_steps,
        lr=_LR_SHARE * pretrain.lr,
        warmup_steps=min(_WARMUP_STEPS, num_steps),
        decay_steps=num_steps,
        eval_every=every,
        save_every=every,
    )
    return replace(config, pretrain=changed)


def paper(config: VampoConfig, sampler: EulerHybridSettings) -> VampoConfig:
    """Reward what the paper rewards, latent L1 and cosine.

    A chain whose own credit is ``pathwise`` has groups too small to be compared. They become larger here, and the
    iterations as many fewer as keep the compute; the learning rate is one that advantages bear, and the best checkpoint
    is the one with the highest reward.
    """
    weights: dict[str, Any] = {f.name: 0.0 for f in fields(RewardConfig) if f.name.endswith("_weight")}
    config = replace(config, reward=RewardConfig(**{**weights, "l1_weight": 1.0, "cosine_weight": 1.0}))
    own = config.grpo
    if own.credit != "pathwise":
        return config
    grpo = replace(own, credit="frame", num_generations=max(own.num_generations, _GROUP_SIZE))
    share = forwards_per_iteration(own, sampler) / forwards_per_iteration(grpo, sampler)

    def fewer(number: int) -> int:
        return max(1, round(share * number)) if number else 0

    optim, run = config.optim, config.run
    return replace(
        config,
        grpo=replace(grpo, num_iterations=fewer(own.num_iterations)),
        evaluation=replace(config.evaluation, best_by="reward"),
        optim=replace(
            optim, lr=_PAPER_LR, warmup_steps=fewer(optim.warmup_steps), decay_steps=fewer(optim.decay_steps)
        ),
        run=replace(run, eval_every=fewer(run.eval_every), save_every=fewer(run.save_every)),
    )


ARMS: dict[ArmName, Arm] = {
    "base": Arm(title="Base"),
    "base_scaled": Arm(title="Base with scaled actions", scales_actions=True),
    "likelihood": Arm(title="Likelihood training for the same compute", kind=PRETRAINING, configure=same_compute),
    "vampo_latent": Arm(title="VAMPO with the paper's reward", kind=VAMPO, configure=paper),
    "vampo": Arm(title="VAMPO", kind=VAMPO),
}
"""All arms, by the name that ``chain.arms`` uses."""
