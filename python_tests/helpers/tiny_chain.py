"""Settings of a chain on a tiny simulator, and a way to kill it."""

from collections.abc import Callable

import pytest

TINY = [
    "data.env=simulators:line", "data.num_episodes=4", "data.stride=1", "data.held_out_fraction=0.25",
    "model.latent_channels=4",
    "grpo.num_iterations=1", "policy.action_horizon=4", "policy.num_executed_steps=2", "policy.num_sampling_steps=2",
    "policy.num_queries=2", "policy.former_depth=1", "policy.depth=1", "policy.width=16",
    "policy.num_attention_heads=2", "policy.num_steps=2", "policy.warmup_steps=0", "policy.decay_steps=0",
    "policy.batch_size=2", "closed_loop.num_episodes=2", "closed_loop.num_workers=0", "closed_loop.num_videos=1",
]  # fmt: skip


def kill(monkeypatch: pytest.MonkeyPatch, trainer: type, iteration: int, begin: Callable[[], object]) -> list[int]:
    """Begin a chain whose trainer dies in an iteration.

    Returns:
        The iterations that trainers of this class make from then on.
    """
    real, steps = trainer.iterate, []

    def dies(self, i, batches):
        if i == iteration:
            raise RuntimeError("killed")
        return real(self, i, batches)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "iterate", dies)
        with pytest.raises(RuntimeError, match="killed"):
            begin()
    monkeypatch.setattr(trainer, "iterate", lambda self, i, batches: steps.append(i) or real(self, i, batches))
    return steps
