"""A finished run of a tiny predictor on made-up episodes; takes seconds."""

import json

import numpy as np
import torch

import vampo_core
from vampo_core.data.formats.recorded import FORMAT, VERSION, EpisodeHeader, episode_folder, write_episode

SIZE, LENGTH = 32, 12


def write_dataset(root, num_episodes=6, *, action_dim=0, instructions=("cross <the> scene & stop",)):
    """A dark square crosses a bright scene, at a different speed in every episode.

    With ``action_dim`` the actions are how far it jumps and what the speed is, else they are two zeros. Instructions
    take turns.
    """
    root.mkdir(parents=True)
    (root / "dataset.json").write_text(json.dumps({"format": FORMAT, "version": VERSION, "fps": 10}))
    for number in range(num_episodes):
        rng = np.random.default_rng(number)
        background = rng.integers(150, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        frames, places = [], [(2 + number) * t % (SIZE - 8) for t in range(LENGTH)]
        for x in places:
            frame = background.copy()
            frame[12:20, x : x + 8] = (20, 40, 160)
            frames.append(frame)
        header = EpisodeHeader(f"{number:06d}", LENGTH, True, number, instructions[number % len(instructions)], 10.0)
        counts = {"actions": LENGTH - 1, "states": LENGTH, "privileged_states": LENGTH}
        arrays = {name: np.zeros((count, 2)) for name, count in counts.items()}
        if action_dim:
            jumps = np.diff(places)[:, None]
            arrays["actions"] = np.concatenate([jumps, np.full((LENGTH - 1, action_dim - 1), 2 + number)], axis=1)
        write_episode(episode_folder(root, number), header, frames, arrays)


def write_latent_dataset(root, num_episodes=6):
    """Write latents in the VPP layout, without videos and without a codec."""
    (root / "annotation" / "train").mkdir(parents=True)
    for number in range(num_episodes):
        name = f"latent_videos/train/{number}/0.pt"
        (root / name).parent.mkdir(parents=True)
        torch.save(torch.randn(LENGTH, 4, 8, 8, generator=torch.Generator().manual_seed(number)), root / name)
        annotation = {
            "texts": ["pick it up"],
            "videos": [{"video_path": f"videos/train/{number}/rgb.mp4"}],
            "latent_videos": [{"latent_video_path": name}],
            "video_length": LENGTH,
        }
        (root / "annotation" / "train" / f"{number}.json").write_text(json.dumps(annotation))


def settings(folder, *overrides):
    """Configuration of a run in ``folder`` that takes seconds."""
    return vampo_core.load_config(
        "pusht", f"run.dir={folder}/runs/tiny", f"data.root={folder}/data", "data.env=null", f"data.resolution={SIZE}",
        "data.num_frames=4", "data.held_out_fraction=0.34", "model.block_out_channels=[32, 32]", "pretrain.num_steps=2",
        "grpo.num_iterations=3", "grpo.batch_size=2", "grpo.num_generations=2", "sampler.num_inference_steps=3",
        "evaluation.num_clips=5", "run.eval_every=2", "decoder.num_steps=2", "decoder.width=8", *overrides,
    )  # fmt: skip
