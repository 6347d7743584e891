"""Policies that act on the video that they imagine, as a chain makes them: one decoder of actions, many predictors."""

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


def action_decoder(config: VampoConfig) -> Path:
    """The decoder of actions that all arms share, trained on true latents, made where it is missing.

    Returns:
        Its folder, whose name changes with everything that decides its weights.
    """
    raise NotImplementedError


def imagined_policy(
    config: VampoConfig, predictor: Path, decoder: Path, *, folder: Path, action_scale: float = 1.0
) -> Path:
    """Put a policy together from a predictor and a decoder; nothing is trained.

    Args:
        config: configuration of the chain.
        predictor: folder of the video predictor.
        decoder: folder of the decoder of actions.
        folder: folder of the policy, which is whole or absent at any time; a policy that is there is kept.
        action_scale: factor on decoded actions.

    Returns:
        The policy's folder.
    """
    raise NotImplementedError
