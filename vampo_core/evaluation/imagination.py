"""What a policy's predictor imagines, shown beside what really happens."""

import torch
from torch import Tensor

from vampo_core.evaluation.predictor import decode_video, predict
from vampo_core.models.predictor import VideoPredictor


class Imagination:
    """Predicted videos along an episode: each begins at a true frame, where the one before ended.

    Args:
        predictor: video predictor in eval mode, whose codec can decode.
        stride: number of control steps from one predicted frame to the next, as in training.
    """

    def __init__(self, predictor: VideoPredictor, *, stride: int) -> None:
        self.predictor, self.stride = predictor, stride

    def __call__(
        self,
        frames: Tensor,  # [T, 3, H, W] in [0, 1]
        instruction: str,
    ) -> Tensor:  # [T, 3, H, W]
        """The predicted frame for each frame of an episode."""
        num_frames = self.predictor.settings.num_frames
        span = self.stride * (num_frames - 1)
        starts = frames[::span]
        device = self.predictor.device
        first = self.predictor.codec.encode(starts.to(device)).unsqueeze(1)  # [n, 1, C, h, w]
        batch = {"latents": first.expand(-1, num_frames, -1, -1, -1), "instruction": [instruction] * len(starts)}
        sampler = self.predictor.sampler()
        latents = predict(self.predictor, sampler, batch, num_samples=1, seed=0, batch_size=16)[:, 0]
        videos = decode_video(self.predictor.codec, latents)  # [n, F, 3, H, W]
        step = torch.arange(len(frames))
        return videos[step // span, step % span // self.stride].clamp(0, 1)
