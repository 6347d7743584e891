"""What a policy's predictor imagines, shown beside what really happens."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vampo_core.diffusion.streams import CONTROL, stream_seed
from vampo_core.evaluation.predictor import decode_video, predict
from vampo_core.models.predictor import Condition, VideoPredictor


class Imagination:
    """Predicted videos along an episode: each begins at a true frame, where the one before ended.

    Args:
        predictor: video predictor in eval mode, whose codec can decode.
        stride: number of control steps from one predicted video frame to the next, as in training.
    """

    def __init__(self, predictor: VideoPredictor, *, stride: int) -> None:
        self.predictor, self.stride = predictor, stride

    def __call__(
        self,
        frames: Tensor,  # [T, 3, H, W] in [0, 1]
        instruction: str,
        seed: int,
    ) -> Tensor:  # [T, 3, H, W]
        """The predicted frame for each frame of an episode."""
        num_frames = self.predictor.settings.num_frames
        span = self.stride * (num_frames - 1) * self.predictor.codec.temporal_ratio
        starts = frames[::span]
        device = self.predictor.device
        first = self.predictor.codec.encode(starts.to(device)).unsqueeze(1)  # [n, 1, C, h, w]
        batch = {"latents": first.expand(-1, num_frames, -1, -1, -1), "instruction": [instruction] * len(starts)}
        sampler = self.predictor.sampler()
        latents = predict(self.predictor, sampler, batch, num_samples=1, seed=0, batch_size=16)[:, 0]
        videos = decode_video(self.predictor.codec, latents)  # [n, F, 3, H, W]
        step = torch.arange(len(frames))
        return videos[step // span, step % span // self.stride].clamp(0, 1)


class ActedImagination:
    """The videos that a policy acted on: at every step the imagined frame that it is on its way to.

    Args:
        predictor: video predictor of the policy, whose codec can decode.
        imagine: the policy's way to imagine, from observed frames and keys of noise to latents [n, F, C, h, w].
        stride: number of control steps from one imagined frame to the next.
        num_executed_steps: number of control steps from one look to the next.
    """

    def __init__(
        self,
        predictor: VideoPredictor,
        imagine: Callable[[Condition, Sequence[int]], Tensor],
        *,
        stride: int,
        num_executed_steps: int,
    ) -> None:
        self.predictor, self.imagine = predictor, imagine
        self.stride, self.every = stride, num_executed_steps

    def __call__(
        self,
        frames: Tensor,  # [T, 3, H, W] in [0, 1]
        instruction: str,
        seed: int,
    ) -> Tensor:  # [T, 3, H, W]
        """The imagined frame for each frame of the episode with this seed, with the noise that was drawn in it."""
        looks = range(0, len(frames), self.every)
        condition = self.predictor.condition(
            instructions=[instruction] * len(looks), first_frames=frames[:: self.every].to(self.predictor.device)
        )
        latents = self.imagine(condition, [stream_seed(seed, CONTROL, step) for step in looks])
        videos = decode_video(self.predictor.codec, latents)  # [n, F, 3, H, W]
        step = torch.arange(len(frames))
        ahead = (step % self.every // self.stride + 1).clamp(max=videos.shape[1] - 1)
        return videos[step // self.every, ahead].clamp(0, 1)
