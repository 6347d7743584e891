"""Videos predicted from a first frame and an instruction."""

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
    """Predict videos and write them as an mp4 file, side by side, with the expert's video if there is one.

    Args:
        checkpoint: model folder, checkpoint or run folder.
        config: configuration of the sampler; the noise follows from ``evaluation.seed``.
        output: file to write, ``*.mp4``.
        image: image to use as the first frame, resized to ``data.resolution``.
        video: video to take the first frame from. Its frames are chosen as those of an episode and shown as the
            expert's.
        instruction: what the robot should do. Held-out clips have their own instruction, an image or a video needs one.
        num_samples: number of videos for each first frame.
        num_clips: number of held-out clips, used without ``image`` and ``video``.

    Raises:
        ConfigError: an argument is wrong, or two of them exclude each other.
        ValueError: there is no predictor, or its codec cannot decode.
        OSError: a file cannot be read or written.
    """
    output = Path(output)
    if output.suffix != ".mp4":
        raise ConfigError(f"output is {str(output)!r}, expected a name that ends in .mp4")
    if image is not None and video is not None:
        raise ConfigError(f"image is {str(image)!r} and video is {str(video)!r}, expected at most one of them")
    for name, number in (("num_samples", num_samples), ("num_clips", num_clips)):
        if number < 1:
            raise ConfigError(f"{name} is {number}, expected at least 1")
    model = inference_predictor(config, checkpoint)
    if not model.codec.can_decode:
        raise ValueError(f"{checkpoint} was trained on ready-made latents and has no codec to decode videos")
    has_expert = image is None
    if image is None and video is None:
        batch = held_out_batch(prepare_clips(config, model.codec).held_out, num_clips)
        if instruction is not None:
            batch["instruction"] = [instruction] * len(batch["instruction"])
    else:
        if instruction is None and model.text_encoder is not None:
            raise ConfigError("instruction is None, expected a text: an image or a video does not say what to do")
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
    """One clip, in the form in which the data loader gives it."""
    device = model.device
    latents = model.codec.encode(frames.unsqueeze(0).to(device)).cpu()  # [1, F, C, h, w]
    return {"latents": latents, "instruction": [instruction]}


def _image_frames(path: str | Path, config: VampoConfig) -> Tensor:  # [F, 3, H, W], F copies
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
