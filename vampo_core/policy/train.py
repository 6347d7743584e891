"""Training of a policy of any kind on expert episodes."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from vampo_core.config import VampoConfig
from vampo_core.data.clips import ClipDataset, Clips
from vampo_core.data.episode import Episode
from vampo_core.data.prefetch import batches_for
from vampo_core.evaluation.predictor import held_out_batch
from vampo_core.models.predictor import VideoPredictor
from vampo_core.policy.base import PREDICTOR, Policy
from vampo_core.policy.data import ActionDataset, action_loader
from vampo_core.policy.evaluation import PolicyEvalResult, evaluate_policy
from vampo_core.policy.learner import Learner
from vampo_core.policy.registry import policy_class
from vampo_core.training.loop import Callback, Loop, TrainResult
from vampo_core.training.loss_update import update_on_loss
from vampo_core.training.optimizer import ModelOptimizer
from vampo_core.training.processes import new_accelerator
from vampo_core.training.schedule import Schedule

D = TypeVar("D", bound=ActionDataset)


class PolicyTrainer:
    """Trains a policy, and on request the predictor inside it, to imitate experts.

    Args:
        model: policy or action decoder; parameters that require grad are trained.
        config: settings of the run, ``config.policy`` above all.
        train_dataset: frames of training episodes.
        eval_dataset: frames of held-out episodes.
        name: name of the work, for the progress bar.
    """

    result_type: type[PolicyEvalResult] = PolicyEvalResult
    callbacks: Sequence[Callback] = ()

    def __init__(
        self,
        *,
        model: Learner,
        config: VampoConfig,
        train_dataset: ActionDataset,
        eval_dataset: ActionDataset,
        name: str = "policy",
    ) -> None:
        settings = config.policy
        self.model, self.config = model, config
        self.schedule = Schedule.of_updates(name, settings)
        self.accelerator = new_accelerator()
        self.train_dataset = train_dataset
        self.eval_batch = held_out_batch(eval_dataset, config.evaluation.num_clips)
        self.optimizer = ModelOptimizer(
            model,
            self.accelerator,
            settings,
            num_updates=settings.num_steps,
            ema_decay=settings.ema_decay,
            lr_scale=lambda name: settings.predictor_lr_scale if name.startswith(f"{PREDICTOR}.") else 1.0,
        )

    def train(self, resume_from: str | Path | None = None) -> TrainResult[PolicyEvalResult]:
        """Run the loop, from the start or from a checkpoint of this run."""
        return Loop(self).run(resume_from)

    def batches(self, done: int) -> Iterator[Mapping[str, Any]]:
        """Training batches, starting behind those of the first ``done`` updates."""
        loader = action_loader(
            self.train_dataset,
            batch_size=self.config.policy.batch_size,
            seed=self.config.run.seed,
            num_workers=self.config.data.num_workers,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            start_batch=done,
            pin_memory=self.accelerator.device.type == "cuda",
        )
        return batches_for(self.accelerator.device, loader)

    def iterate(self, iteration: int, batches: Iterator[Mapping[str, Any]]) -> dict[str, Any]:
        """One update on the policy's loss."""
        return update_on_loss(self, iteration, batches, self.loss)

    def loss(self, iteration: int, batch: Mapping[str, Any]) -> Tensor:  # []
        """The loss of this process's part of a batch; its noise follows from seed, iteration and process."""
        first_clip = self.accelerator.process_index * len(batch["instruction"])
        return self.model.training_loss(batch, seed=self.config.run.seed, iteration=iteration, first_clip=first_clip)

    def evaluate(self) -> PolicyEvalResult | None:
        """Held-out action error of the model, or of its EMA, on the main process only."""
        if not self.accelerator.is_main_process:
            return None
        settings = self.config.evaluation
        with self.optimizer.ema_weights():
            return evaluate_policy(
                self.model,
                self.eval_batch,
                num_samples=settings.num_samples,
                seed=settings.seed,
                batch_size=settings.batch_size,
            )

    def score(self, result: PolicyEvalResult) -> float:
        """The negative action error."""
        return result.score


def action_datasets(
    config: VampoConfig, predictor: VideoPredictor, clips: Clips, root: str | Path
) -> tuple[ActionDataset, ActionDataset]:
    """Frames of the episodes that the predictor is trained on and evaluated on, ready for a policy's training.

    Of the training episodes there are ``policy.num_episodes``, or all.

    Args:
        config: settings of the run.
        predictor: video predictor of the policy, on the device where it should run.
        clips: training and held-out clips of one dataset.
        root: folder of the dataset; features of a frozen predictor are kept there.

    Returns:
        Training and held-out frames.
    """
    (train_clips,), kind = clips.train, policy_class(config.policy.kind)
    train, held_out = datasets_of(kind.dataset, config, train_clips, clips.held_out)
    kind.prepare_data(config, predictor, (train, held_out), root)
    return train, held_out


def datasets_of(
    dataset: Callable[..., D], config: VampoConfig, train: ClipDataset, held_out: ClipDataset
) -> tuple[D, D]:
    """Training and held-out items of one dataset's episodes, of which ``policy.num_episodes`` are trained on.

    Args:
        dataset: makes a dataset as :meth:`vampo_core.Policy.dataset` does.
        config: settings of the run.
        train: clips of the training episodes.
        held_out: clips of held-out episodes, of this dataset and perhaps of others.
    """
    name = train.episodes[0].dataset
    learned = dataset(config, labelled(train.episodes, config.policy.num_episodes))
    own = [episode for episode in held_out.episodes if episode.dataset == name]
    return learned, dataset(config, own, learned.widths)


def labelled(episodes: Sequence[Episode], number: int | None) -> list[Episode]:
    """The first ``number`` episodes, taken in turn from each instruction; all of them for None."""
    by_instruction: dict[str, list[Episode]] = {}
    for episode in episodes:
        by_instruction.setdefault(episode.instruction, []).append(episode)
    rounds = itertools.zip_longest(*by_instruction.values())
    in_turn = [episode for one in rounds for episode in one if episode is not None]
    return list(episodes) if number is None else in_turn[:number]


def new_policy(config: VampoConfig, predictor: VideoPredictor, dataset: ActionDataset) -> Policy:
    """An untrained policy for a dataset; its weights follow ``run.seed``, and its trained parameters require grad."""
    with torch.random.fork_rng():
        torch.manual_seed(config.run.seed)
        return policy_class(config.policy.kind).new(config, predictor, dataset)
