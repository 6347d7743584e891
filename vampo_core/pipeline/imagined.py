"""Policies that act on the video that they imagine, as a chain puts them together."""

from pathlib import Path

from vampo_core.config import ConfigError, VampoConfig


def check_imagined(config: VampoConfig) -> None:
    """Refuse settings of a chain with which no such policy can be made.

    Raises:
        ConfigError: there is no such policy.
    """
    raise ConfigError(
        f"chain.policies is {list(config.chain.policies)}, expected no imagined: that policy is not available"
    )


def imagined_policy(
    config: VampoConfig, predictor: str | Path, folder: str | Path, *, action_scale: float = 1.0
) -> Path:
    """Write a policy that acts on the videos of a predictor, with the decoder of actions that all arms share.

    Args:
        config: configuration of the policy.
        predictor: run folder, checkpoint or model folder of the predictor.
        folder: policy folder to write.
        action_scale: factor on decoded actions.

    Returns:
        ``folder``.
    """
    raise NotImplementedError
