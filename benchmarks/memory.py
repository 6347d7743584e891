"""Memory of one iteration on a Wan with random weights, against what ``vampo plan`` says; on a GPU.

    python benchmarks/memory.py [--size small|ti2v-5b] [--results FOLDER] [-- key=value ...]

The size ti2v-5b is that of Wan2.2-TI2V-5B at 224x448 and 33 frames, with adapters of rank 16 on frozen bfloat16 weights
and latents instead of a VAE. Without a GPU only the plan is made.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from report import environment

from vampo_core.config import VampoConfig, load_config
from vampo_core.data.clips import ClipDataset
from vampo_core.grpo.trainer import VampoTrainer
from vampo_core.models.codecs.latent import LatentCodec
from vampo_core.models.flow.folder import flow_scheduler
from vampo_core.models.predictor import VideoPredictor
from vampo_core.models.settings import PredictorSettings
from vampo_core.models.text.text import InstructionEncoder
from vampo_core.models.wan.default import default_transformer
from vampo_core.models.wan.predictor import WanPredictor
from vampo_core.pipeline.plan import memory_plan, memory_table
from vampo_core.pipeline.predictor import add_adapters

SIZES = {  # latent [F, C, h, w] and arguments of the transformer
    "small": ((3, 4, 4, 4), {"num_layers": 2}),
    "ti2v-5b": (
        (9, 48, 14, 28),
        {
            "num_attention_heads": 24, "attention_head_dim": 128, "text_dim": 4096, "freq_dim": 256,
            "ffn_dim": 14336, "num_layers": 30, "rope_max_seq_len": 1024,
        },
    ),
}  # fmt: skip
SETTINGS = (
    "model.lora=16", "model.dtype=bfloat16", "grpo.num_iterations=2", "grpo.batch_size=1", "grpo.num_generations=8",
    "sampler.num_inference_steps=4", "optim.lr=1e-6", "evaluation.action_error=false", "evaluation.num_clips=2",
)  # fmt: skip
TOKENS = 512


class RandomEpisode:
    """Latents of a clip, drawn at random."""

    dataset, instruction, episode_id = "random", "push the block", "0"
    latents_fingerprint = None

    def __init__(self, latent: tuple[int, ...]) -> None:
        self.length, self._latents = latent[0], torch.randn(latent)
        self.actions = self.states = torch.empty(self.length, 0)
        self.is_pushed = torch.zeros(self.length, dtype=torch.bool)

    def latents(self, indices) -> torch.Tensor:
        return self._latents[list(indices)]


def configure(folder: Path, size: str, overrides: list[str]) -> VampoConfig:
    """Write the config files of a folder of this size, and a configuration that starts from it."""
    latent, sizes = SIZES[size]
    with torch.device("meta"):
        transformer = default_transformer(latent[1], **sizes)
    transformer.save_config(folder / "transformer")
    LatentCodec(latent_channels=latent[1]).save_pretrained(folder / "codec")
    InstructionEncoder(transformer.config["text_dim"], max_length=TOKENS).save_config(folder / "text_encoder")
    flow_scheduler(flow_shift=5.0).save_pretrained(folder / "scheduler")
    PredictorSettings(num_frames=latent[0]).save(folder)
    ratio = LatentCodec(latent_channels=latent[1]).spatial_ratio
    shape = [f"data.resolution=[{latent[2] * ratio},{latent[3] * ratio}]", f"data.num_frames={latent[0]}"]
    path = folder / "config.yaml"
    path.write_text("{}\n")
    return load_config(path, f"model.pretrained={folder}", f"run.dir={folder}/run", *shape, *SETTINGS, *overrides)


def new_model(config: VampoConfig, size: str, device: torch.device) -> VideoPredictor:
    """The model with random weights, made on the device."""
    latent, sizes = SIZES[size]
    with torch.device(device):
        transformer = default_transformer(latent[1], **sizes)
    model = WanPredictor(
        transformer,
        LatentCodec(latent_channels=latent[1]),
        text_encoder=InstructionEncoder(transformer.config["text_dim"], max_length=TOKENS),
        scheduler=flow_scheduler(flow_shift=5.0),
        settings=PredictorSettings(num_frames=latent[0]),
        dtype=config.model.dtype,
    )
    add_adapters(config, model)
    if config.model.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    return model


def measure(config: VampoConfig, size: str, device: torch.device) -> dict[str, float]:
    """Peak of allocated memory and time of an iteration, the second one."""
    clips = ClipDataset([RandomEpisode(SIZES[size][0])], num_frames=SIZES[size][0][0])  # type: ignore[list-item]
    trainer = VampoTrainer(
        model=new_model(config, size, device), config=config, train_dataset=clips, eval_dataset=clips
    )
    batches = trainer.batches(0)
    trainer.iterate(1, batches)
    torch.cuda.reset_peak_memory_stats()
    begin = time.perf_counter()
    trainer.iterate(2, batches)
    torch.cuda.synchronize()
    seconds = time.perf_counter() - begin
    return {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved(), "s": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        config = configure(Path(folder), args.size, args.overrides)
        plan = memory_plan(config)
        print(memory_table(plan, config))
        measured = measure(config, args.size, device) if device.type == "cuda" else "not measured: there is no GPU"
    result = {
        **environment(device.type), "size": args.size, "overrides": args.overrides, "planned": plan.total,
        "measured": measured,
    }  # fmt: skip
    args.results.mkdir(parents=True, exist_ok=True)
    (args.results / f"memory-{args.size}-{device.type}.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["measured"]))


if __name__ == "__main__":
    main()
