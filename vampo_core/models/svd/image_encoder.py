"""SVD's image condition: one CLIP token of the first frame."""

import torch
from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import _resize_with_antialiasing
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection


class ClipImageEncoder(nn.Module):
    """Frozen CLIP image embedding, prepared as ``StableVideoDiffusionPipeline`` does.

    Args:
        feature_extractor: CLIP's, for its mean and standard deviation.
        model: CLIP's vision model; frozen here.
    """

    def __init__(self, feature_extractor: CLIPImageProcessor, model: CLIPVisionModelWithProjection):
        super().__init__()
        self.feature_extractor = feature_extractor
        self.model = model.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, frames: Tensor) -> Tensor:  # [B, 3, H, W] in [0, 1] -> [B, 1, D]
        """Embed first frames; no gradient."""
        size = self.model.config.image_size
        pixels = _resize_with_antialiasing(frames.float() * 2 - 1, (size, size)) / 2 + 0.5
        mean, std = (
            torch.tensor(values, device=pixels.device).view(1, 3, 1, 1)
            for values in (self.feature_extractor.image_mean, self.feature_extractor.image_std)
        )
        pixels = ((pixels - mean) / std).to(self.model.device, self.model.dtype)
        return self.model(pixels).image_embeds.float().unsqueeze(1)
