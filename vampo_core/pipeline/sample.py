"""Videos from a first frame and an instruction."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vampo_core.config import ConfigError, VampoConfig
from vampo_core.data.video import count_frames, read_frames, resize_frames
from vampo_core.evaluation.panels import save_video, side_by_side
from vampo_core.evaluation.predictor import decode_video, held_out_batch, predict
from vampo_core.models.predictor import VideoPredictor
from vampo_core.pipeline.clips import prepare_clips
from vampo_core.pipeline.predictor import inference_predictor


def sample_videos(
    checkpoint: str | Path,
    config: VampoConfig,
    *,
    output: str | Path,
    image: str | Path | None = None,
    video: str | Path | None = None,
    instruction: str | None = None,
    num_samples: int = 1,
    num_clips: int = 4,
) -> Path:
    """Predict videos and write them side by side, beside the expert's where there is one, as an mp4 file.

    Args:
        checkpoint: model folder, checkpoint or run folder.
        config: how videos are sampled; noise follows from ``evaluation.seed``.
        output: the file, ``*.mp4``.
        image: first frame, brought to ``data.resolution``.
        video: its first frame is the given one; its frames are chosen as from an episode and shown as the expert's.
        instruction: what the robot is told to do; by default the clip's own, which an image or a video has not.
        num_samples: videos of each first frame.
        num_clips: held-out clips, where neither an image nor a video is given.

    Raises:
        ConfigError: arguments do not go together.
        ValueError: there is no predictor, or it cannot decode what it predicts.
        OSError: a file cannot be read or written.
    """
    output = Path(output)
    if output.suffix != ".mp4":
        raise ConfigError(f"output is {str(output)!r}, expected a name that ends in .mp4")
    if image is not None and video is not None:
        raise ConfigError(f"image is {str(image)!r} and video is {str(video)!r}, expected one of them at most")
    for name, number in (("num_samples", num_samples), ("num_clips", num_clips)):
        if number < 1:
            raise ConfigError(f"{name} is {number}, expected at least 1")
    model = inference_predictor(config, checkpoint)
    if not model.codec.can_decode:
        raise ValueError(f"{checkpoint} was trained on ready-made latents and has no codec to decode videos with")
    has_expert = image is None
    if image is None and video is None:
        batch = held_out_batch(prepare_clips(config, model.codec).held_out, num_clips)
        if instruction is not None:
            batch["instruction"] = [instruction] * len(batch["instruction"])
    else:
        if instruction is None and model.text_encoder is not None:
            raise ConfigError("instruction is None, expected a text: an image or a video does not tell what to do")
        frames = _image_frames(image, config) if image is not None else _video_frames(Path(video or ""), config)
        batch = _batch(model, frames, instruction or "")
    latents = predict(
        model,
        model.sampler(**config.sampler.overrides()),
        batch,
        num_samples=num_samples,
        seed=config.evaluation.seed,
        batch_size=config.evaluation.batch_size,
    )
    labels = ["expert"] * has_expert + [f"sample {n}" for n in range(1, num_samples + 1)]
    rows = [
        [decode_video(model.codec, clip) for clip in [*([expert] if has_expert else []), *samples]]
        for expert, samples in zip(batch["latents"], latents, strict=True)
    ]
    save_video(output, side_by_side(rows, labels))
    return output


def _batch(model: VideoPredictor, frames: Tensor, instruction: str) -> dict[str, Any]:
    """One clip as the data loader would give it."""
    device = model.device
    latents = model.codec.encode(frames.to(device)).cpu()  # [F, C, h, w]
    return {"latents": latents.unsqueeze(0), "instruction": [instruction]}


def _image_frames(path: str | Path, config: VampoConfig) -> Tensor:  # [F, 3, H, W], the same F times
    with Image.open(path) as file:
        pixels = torch.from_numpy(np.array(file.convert("RGB")))
    return _resized(pixels.unsqueeze(0), config).expand(config.data.num_frames, -1, -1, -1)


def _video_frames(path: Path, config: VampoConfig) -> Tensor:  # [F, 3, H, W]
    num_frames, length = config.data.num_frames, count_frames(path)
    if length < 1:
        raise ValueError(f"video is {str(path)!r}, which has no frames")
    if config.data.sampling == "episode":
        indices = np.linspace(0, length - 1, num_frames).round().astype(int).tolist()
    else:
        indices = [min(i * config.data.stride, length - 1) for i in range(num_frames)]
    return _resized(read_frames(path, indices), config)


def _resized(frames: Tensor, config: VampoConfig) -> Tensor:  # [N, H, W, 3] uint8 -> [N, 3, H', W'] in [0, 1]
    return resize_frames(frames.permute(0, 3, 1, 2).float() / 255, config.data.image_size).clamp(0, 1)
