"""Clips that a predictor is trained and evaluated on, shared by post-training and pretraining."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from vampo_core.config import VampoConfig
from vampo_core.data.clips import ClipDataset, clip_loader
from vampo_core.data.prefetch import batches_for
from vampo_core.evaluation.judge import Judge
from vampo_core.evaluation.predictor import EvalResult, frame_metrics, held_out_batch, predict, summarize
from vampo_core.models.predictor import VideoPredictor
from vampo_core.training.processes import gathered
from vampo_core.training.sharding import is_sharded


class PredictorClips:
    """Training batches and the held-out evaluation of a predictor.

    The configuration's sampler becomes the model's own, in the folders it is saved to as well: checkpoints are to be
    sampled with what they were trained, or chosen as the best, with.

    Args:
        model: the predictor.
        config: settings of the run.
        accelerator: this process among the others.
        train_dataset: training clips with latents, of one dataset or several.
        eval_dataset: held-out clips with latents.
        judge: judge of the actions in predicted videos; None to measure none.
    """

    def __init__(
        self,
        model: VideoPredictor,
        config: VampoConfig,
        accelerator: Accelerator,
        train_dataset: ClipDataset | Sequence[ClipDataset],
        eval_dataset: ClipDataset,
        judge: Judge | None = None,
    ) -> None:
        self._judge = judge
        self._model, self._config, self._accelerator = model, config, accelerator
        self._train_datasets = [train_dataset] if isinstance(train_dataset, ClipDataset) else list(train_dataset)
        if model.num_given_frames:  # a transformer takes any number, and is to be sampled with what it was trained on
            model.settings = replace(model.settings, num_frames=self._train_datasets[0].num_frames)
        if hasattr(model.text_encoder, "prepare"):  # a large one embeds all instructions at once
            episodes = [e for dataset in (*self._train_datasets, eval_dataset) for e in dataset.episodes]
            model.text_encoder.prepare([episode.instruction for episode in episodes])
        self._eval_batch = held_out_batch(eval_dataset, config.evaluation.num_clips)
        self.sampler = model.sampler(**config.sampler.overrides())
        model.set_sampler(self.sampler)
        self._eval_sampler = model.sampler(**config.sampler.overrides(cheap_tail=config.evaluation.cheap_tail))

    def batches(self, batch_size: int, *, start_batch: int) -> Iterator[Mapping[str, Any]]:
        """Yield the parts of training batches that belong to this process, without end.

        Args:
            batch_size: clips of a batch, over all processes together.
            start_batch: number of batches to leave out.
        """
        loader = clip_loader(
            self._train_datasets,
            batch_size=batch_size,
            weights=self._config.data.weights,
            seed=self._config.run.seed,
            num_workers=self._config.data.num_workers,
            rank=self._accelerator.process_index,
            world_size=self._accelerator.num_processes,
            start_batch=start_batch,
            pin_memory=self._accelerator.device.type == "cuda",
        )
        return batches_for(self._accelerator.device, loader)

    def evaluate(self) -> EvalResult:
        """Held-out metrics with fixed noise; processes share the batches and end with the same result."""
        settings, model, whole = self._config.evaluation, self._model, self._eval_batch
        was_training = model.training
        model.eval()
        num_clips, num_processes = len(whole["instruction"]), self._accelerator.num_processes
        starts = list(range(0, num_clips, settings.batch_size))
        if is_sharded(model.denoiser_network):  # all run the denoiser as often, on as many clips
            starts += starts[:1] * (-len(starts) % num_processes)
        own: dict[int, dict[str, Tensor]] = {}
        for start in starts[self._accelerator.process_index :: num_processes]:
            part = {key: values[start : start + settings.batch_size] for key, values in whole.items()}
            num_rows = len(part["instruction"])
            if is_sharded(model.denoiser_network):
                part = {key: _repeated(values, min(settings.batch_size, num_clips)) for key, values in part.items()}
            videos = predict(
                model,
                self._eval_sampler,
                part,
                num_samples=settings.num_samples,
                seed=settings.seed,
                batch_size=settings.batch_size,
                first_clip=start,
            )
            metrics = frame_metrics(videos, part, judge=self._judge, num_given_frames=model.num_given_frames)
            own[start] = {name: values[:num_rows] for name, values in metrics.items()}
        model.train(was_training)
        parts = {start: values for share in gathered(own) for start, values in share.items()}
        names = next(iter(parts.values()))
        values = {name: torch.cat([parts[start][name] for start in sorted(parts)]) for name in names}
        return summarize(values, whole["episode_id"])


def _repeated(values: Any, num_rows: int) -> Any:
    """As many rows of a tensor or list, which begins again at its end."""
    if isinstance(values, Tensor):
        return values[torch.arange(num_rows) % len(values)]
    return [values[row % len(values)] for row in range(num_rows)]
