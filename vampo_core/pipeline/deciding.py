"""Which settings decide a product: two configurations that agree in them share it."""

from typing import Any, Literal

from vampo_core.config import VampoConfig
from vampo_core.models.svd.default import SIGMA_MAX

Product = Literal["data", "base", "vampo", "policy", "evaluation"]

_DATA_KEYS = (
    *("format", "root", "weights", "env", "num_episodes", "action_noise", "steps_after_success", "resolution"),
    *("held_out_fraction", "num_frames", "stride", "sampling"),
)


def deciding(config: VampoConfig, product: Product) -> dict[str, Any]:
    """Settings by key; where a predictor lies is never among them, as its weights count instead."""
    sections = config.to_dict()
    if product == "data":
        return {f"data.{key}": sections["data"][key] for key in _DATA_KEYS}
    if product == "base":
        return {
            **deciding(config, "data"),
            **{f"model.{key}": value for key, value in config.model.unet_options().items()},
            "model.dtype": config.model.dtype,
            "pretrain": sections["pretrain"],
            "sampler.sigma_max": config.sampler.sigma_max or SIGMA_MAX,
            "run.seed": config.run.seed,
        }
    if product == "evaluation":
        return {**deciding(config, "data"), "evaluation": sections["evaluation"], "run.seed": config.run.seed}
    if product == "policy":
        return {"policy": sections["policy"] | {"predictor": None}, **deciding(config, "evaluation")}
    model = sections["model"] | {"pretrained": None}
    trained = {name: sections[name] for name in ("grpo", "sampler", "reward", "optim")}
    # the interval between evaluations is among them: it decides which checkpoints can be the best
    return {**trained, "model": model, "run.eval_every": config.run.eval_every, **deciding(config, "evaluation")}
