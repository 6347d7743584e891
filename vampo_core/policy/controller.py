"""From chunks of actions to one action per control step: receding horizon and temporal ensembling."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from vampo_core.diffusion.streams import CONTROL, stream_seed
from vampo_core.ops._checks import check_int

Observation = Mapping[str, np.ndarray]
"""``pixels`` uint8 [H, W, 3] and ``state`` float32 [S], as a simulator or a robot gives them."""


class ChunkSettings(Protocol):
    """What the controller needs of a policy's settings."""

    @property
    def action_horizon(self) -> int:
        """Actions in a chunk (H)."""
        ...

    @property
    def num_executed_steps(self) -> int:
        """Control steps from one prediction to the next."""
        ...

    @property
    def temporal_ensemble(self) -> float | None:
        """Decay of the weights of overlapping chunks; None executes only the newest chunk."""
        ...


class ChunkPolicy(Protocol):
    """What the controller needs of a policy."""

    @property
    def settings(self) -> ChunkSettings:
        """How the policy acts unless the controller says otherwise."""
        ...

    def predict(
        self, observations: Sequence[Observation], instructions: Sequence[str], seeds: Sequence[int]
    ) -> np.ndarray:  # [B, H, A]
        """Chunks of actions for what is observed; each draws its noise with its seed."""
        ...


@dataclass
class _Slot:
    """An episode in progress."""

    instruction: str
    seed: int
    step: int = 0
    """Number of control steps done."""
    chunks: list[tuple[int, np.ndarray]] = field(default_factory=list)
    """Chunks [H, A] that reach the current step, oldest first, each with the step at which it begins."""


class PolicyController:
    """Runs a policy in several episodes at once: all episodes that need a new chunk are predicted in one batch.

    Every ``num_executed_steps`` control steps a chunk is predicted. Its noise depends only on the episode's seed and
    the step, so an episode does not depend on the others in its batch. Floats round differently in batches of different
    sizes; with ``batch_size`` every batch is filled up to that size, and an episode is then the same to the last bit
    no matter which others run beside it. On a CPU this takes one thread, because several split a batch by its rows.

    Args:
        policy: policy in eval mode, on the device where it should run.
        num_executed_steps: control steps from one prediction to the next; the policy's setting by default.
        temporal_ensemble: decay of the weights of overlapping chunks; the policy's setting by default, a negative
            number for none.
        batch_size: number of observations in every prediction; by default as many as need a new chunk.

    Raises:
        ValueError: ``num_executed_steps`` is not between 1 and the policy's action horizon, or ``batch_size`` is below
            1.
    """

    def __init__(
        self,
        policy: ChunkPolicy,
        *,
        num_executed_steps: int | None = None,
        temporal_ensemble: float | None = None,
        batch_size: int | None = None,
    ) -> None:
        settings = policy.settings
        self.policy = policy
        self.num_executed_steps = settings.num_executed_steps if num_executed_steps is None else num_executed_steps
        decay = settings.temporal_ensemble if temporal_ensemble is None else temporal_ensemble
        self.temporal_ensemble = None if decay is None or decay < 0 else decay
        if not 1 <= self.num_executed_steps <= settings.action_horizon:
            raise ValueError(
                f"num_executed_steps is {self.num_executed_steps}, expected 1 to {settings.action_horizon}, the "
                "policy's action horizon"
            )
        self.batch_size = None if batch_size is None else check_int("batch_size", batch_size, minimum=1)
        self._slots: dict[int, _Slot] = {}

    def begin(self, slot: int, instruction: str, seed: int) -> None:
        """Begin an episode in a slot; the episode that was there before is forgotten."""
        self._slots[slot] = _Slot(instruction, seed)

    def act(self, observations: Mapping[int, Observation]) -> dict[int, np.ndarray]:  # slot -> [A] float32
        """One control step of every observed slot.

        Raises:
            ValueError: a slot has not begun, or an observation does not fit the policy.
        """
        unknown = [slot for slot in observations if slot not in self._slots]
        if unknown:
            raise ValueError(f"observations holds slot {unknown[0]}, expected begin({unknown[0]}, …) before")
        due = [slot for slot in observations if self._slots[slot].step % self.num_executed_steps == 0]
        size = self.batch_size or len(due)
        for start in range(0, len(due), size or 1):
            self._predict(due[start : start + size], observations, size)
        return {slot: self._next_action(self._slots[slot]) for slot in observations}

    def _predict(self, due: list[int], observations: Mapping[int, Observation], size: int) -> None:
        """Predict a chunk for each of these slots, in a batch filled up to ``size`` with copies of the last one."""
        rows = due + due[-1:] * (size - len(due))
        slots = [self._slots[slot] for slot in rows]
        chunks = self.policy.predict(
            [observations[slot] for slot in rows],
            [slot.instruction for slot in slots],
            [stream_seed(slot.seed, CONTROL, slot.step) for slot in slots],
        )
        for slot, chunk in zip(slots[: len(due)], chunks, strict=False):
            slot.chunks.append((slot.step, chunk))

    def _next_action(self, slot: _Slot) -> np.ndarray:  # [A]
        horizon = self.policy.settings.action_horizon
        slot.chunks = [(start, chunk) for start, chunk in slot.chunks if slot.step - start < horizon]
        if self.temporal_ensemble is None:
            slot.chunks = slot.chunks[-1:]
        action = ensemble(np.stack([c[slot.step - start] for start, c in slot.chunks]), self.temporal_ensemble or 0.0)
        slot.step += 1
        return action


def ensemble(
    actions: np.ndarray,  # [N, A], predictions for one step, oldest first
    decay: float,
) -> np.ndarray:  # [A]
    """Temporal ensembling of ACT (Zhao et al. 2023, arXiv 2304.13705): weights ``exp(-decay * i)``, oldest i = 0."""
    weights = np.exp(-decay * np.arange(len(actions)))
    return ((weights / weights.sum()) @ actions).astype(np.float32)
