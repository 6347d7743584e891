"""Made-up episodes in the VPP layout."""

import json

import numpy as np
import torch

from vampo_core.data.video import write_video


def make_episode(root, name, *, length=6, latent_folder="latent_videos", **entries):
    """Write an annotation, a video, and latents whose values are the number of the frame."""
    (root / "annotation" / "train").mkdir(parents=True, exist_ok=True)
    video = root / "videos" / "train" / name / "rgb.mp4"
    latents = root / latent_folder / "train" / name / "0.pt"
    for file in (video, latents):
        file.parent.mkdir(parents=True, exist_ok=True)
    write_video(video, [np.full((16, 24, 3), 10 * t, np.uint8) for t in range(length)], fps=3)
    torch.save(torch.arange(length).view(-1, 1, 1, 1) * torch.ones(1, 4, 2, 3), latents)
    annotation = {
        "texts": [f"do {name}"],
        "videos": [{"video_path": f"videos/train/{name}/rgb.mp4"}],
        "latent_videos": [{"latent_video_path": f"latent_videos/train/{name}/0.pt"}],
        "state": [[t, 0.5] for t in range(length)],
        "action": [[t + 0.25] for t in range(length - 1)],
    }
    (root / "annotation" / "train" / f"{name}.json").write_text(json.dumps(annotation | entries))
    return video, latents


def edit_annotation(root, name, split="train", **entries):
    """Replace entries of an annotation."""
    path = root / "annotation" / split / f"{name}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
