"""The smallest backbone: one convolution, with nothing of SVD's. What works with it works with any backbone."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vampo_core.diffusion.process import EDM
from vampo_core.diffusion.sampler import EulerHybridSampler
from vampo_core.models.codecs.patch import PatchCodec
from vampo_core.models.condition import Condition
from vampo_core.models.fingerprint import fingerprint
from vampo_core.models.predictor import VideoPredictor
from vampo_core.models.settings import PredictorSettings, as_dtype

SCHEDULE = {"sigma_min": 0.002, "sigma_max": 80.0}


class ToyPredictor(VideoPredictor):
    """Denoises noisy latents beside the first frame's with one convolution; instructions are ignored."""

    process = EDM()

    def __init__(self, network, codec, settings, dtype="float32", schedule=SCHEDULE):
        super().__init__()
        self.network, self.codec, self.settings, self.schedule = network, codec, settings, dict(schedule)
        self.text_encoder, self.dtype = None, as_dtype(dtype)
        self.eval()

    @staticmethod
    def new(codec: PatchCodec, num_frames: int) -> "ToyPredictor":
        """An untrained one."""
        network = nn.Conv2d(2 * codec.latent_channels, codec.latent_channels, 3, padding=1)
        return ToyPredictor(network, codec, PredictorSettings(num_frames=num_frames))

    @classmethod
    def load(cls, folder, *, text_encoder, settings, dtype, variant):
        codec = PatchCodec.from_pretrained(folder / "codec")
        model = cls.new(codec, PredictorSettings.load(folder).num_frames)
        model.network.load_state_dict(load_file(folder / "toy.safetensors"))
        schedule = json.loads((folder / "schedule.json").read_text())
        return cls(model.network, codec, settings or PredictorSettings.load(folder), dtype, schedule)

    @staticmethod
    def recognizes(folder: Path) -> bool:
        return (folder / "toy.safetensors").is_file()

    @staticmethod
    def check_folder(folder: Path) -> None:
        pass

    def save_pretrained(self, folder) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.network.state_dict(), folder / "toy.safetensors")
        (folder / "schedule.json").write_text(json.dumps(self.schedule))
        self.settings.save(folder)
        self.codec.save_pretrained(folder / "codec")

    @property
    def denoiser_network(self) -> nn.Module:
        return self.network

    def forward(self, sample: Tensor, sigma, condition: Condition) -> Tensor:
        return self._hidden(sample, sigma, condition).unflatten(0, sample.shape[:2])

    def _hidden(self, sample, sigma, condition):
        level = torch.as_tensor(sigma, dtype=sample.dtype, device=sample.device).reshape(-1, 1, 1, 1, 1)
        first = condition.image_latents.unsqueeze(1).expand_as(sample)
        rows = torch.cat([sample * (level.square() + 1).rsqrt(), first], dim=2).flatten(0, 1)
        with self.autocast(sample.device):
            return self.network(rows)

    def condition(self, *, instructions=None, first_frames=None, first_latents=None) -> Condition:
        latents = self.codec.encode(first_frames) if first_latents is None else first_latents
        latents = latents.to(self.device)
        return Condition(latents, latents.new_zeros(latents.shape[0], 1, 4))

    def observed_condition(self, latents, instructions) -> Condition:
        return self.condition(first_latents=latents)

    def sampler(self, **overrides) -> EulerHybridSampler:
        fields = {"num_inference_steps": self.settings.num_inference_steps, "process": self.process, **self.schedule}
        return EulerHybridSampler(**fields | overrides)

    def set_sampler(self, sampler) -> None:
        self.settings = replace(self.settings, num_inference_steps=sampler.num_inference_steps)
        self.schedule = {"sigma_min": sampler.sigma_min, "sigma_max": sampler.sigma_max}

    def fingerprint(self) -> str:
        return fingerprint([asdict(self.settings), self.schedule, self.dtype], self.state_dict())

    @property
    def num_feature_layers(self) -> int:
        return 1

    def feature_extractor(self, layers, *, seed=0, compiled=False):
        return ToyFeatures(self, seed)

    def feature_parameters(self, layers):
        return self.network.parameters()

    def frozen_network(self, network) -> "ToyPredictor":
        return ToyPredictor(network, self.codec, self.settings, self.dtype, self.schedule)


class ToyFeatures:
    """The output of the convolution."""

    def __init__(self, model: ToyPredictor, seed: int) -> None:
        self.predictor, self.seed = model, seed

    def __call__(self, condition: Condition) -> Tensor:
        sampler, shape = self.predictor.sampler(), condition.image_latents.shape
        noise = sampler.initial_noise((1, self.predictor.settings.num_frames, *shape[1:]), seed=self.seed)
        sample = noise.to(condition.image_latents).expand(shape[0], -1, -1, -1, -1)
        return self.predictor(sample, sampler.sigmas[0], condition)
