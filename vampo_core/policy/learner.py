"""What imitates experts: a policy, or an action decoder."""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from vampo_core.training.optimizer import TrainedModel


class Learner(TrainedModel, Protocol):
    """A module that :class:`~vampo_core.policy.train.PolicyTrainer` trains; see the methods of the same names of
    :class:`vampo_core.Policy`.
    """

    @property
    def action_range(self) -> Tensor:  # [2, A]
        """Smallest and largest action in the training data."""
        ...

    @property
    def training(self) -> bool:
        """Whether it is in training mode."""
        ...

    def train(self, mode: bool = True, /) -> Any:
        """Set the training mode."""
        ...

    def training_loss(self, batch: Mapping[str, Any], *, seed: int, iteration: int, first_clip: int) -> Tensor:  # []
        """The loss of a batch, with gradient."""
        ...

    def predict_recorded(
        self, batch: Mapping[str, Any], *, num_samples: int, seed: int, first_clip: int
    ) -> Tensor:  # [B, num_samples, H, A]
        """Chunks of actions for recorded frames."""
        ...
