"""Stable Video Diffusion's backbone: UNet, codec, text encoder and noise schedule as one model folder."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_spatio_temporal_condition import UNetSpatioTemporalConditionModel
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from torch import Tensor, nn

from vampo_core.diffusion.process import EDM
from vampo_core.diffusion.sampler import EulerHybridSampler
from vampo_core.models import lora
from vampo_core.models.codecs.base import Codec
from vampo_core.models.codecs.vae import VAECodec
from vampo_core.models.condition import Condition
from vampo_core.models.fingerprint import fingerprint
from vampo_core.models.predictor import VideoPredictor
from vampo_core.models.settings import PredictorSettings, as_dtype
from vampo_core.models.svd import folder as parts
from vampo_core.models.svd.change import first_frame_share, input_scale
from vampo_core.models.svd.condition import SVDCondition
from vampo_core.models.svd.default import SIGMA_MAX, default_scheduler, default_unet
from vampo_core.models.svd.features import UpBlockFeatures, feature_unet
from vampo_core.models.text.text import ClipTextEncoder, InstructionEncoder


class SVDPredictor(VideoPredictor):
    """A predictor on SVD's UNet; see :class:`VideoPredictor`.

    Args:
        unet: denoiser; takes noisy latents and the first frame's, side by side on channels.
        codec: codec between frames and latents.
        text_encoder: encoder of instructions to cross-attention tokens; None for SVD's own image condition.
        image_encoder: encoder of SVD's image condition, where there is no text encoder.
        scheduler: noise range and prediction type; EDM's range by default.
        settings: everything else that defines the model.
        dtype: precision of autocast: ``"float32"``, ``"bfloat16"`` or ``"float16"``.

    Raises:
        ValueError: the parts do not fit each other.
    """

    process = EDM()
    text_encoder: InstructionEncoder | ClipTextEncoder | None
    image_encoder: Any  # a ClipImageEncoder, whose module is slow to import

    def __init__(
        self,
        unet: UNetSpatioTemporalConditionModel,
        codec: Codec,
        *,
        text_encoder: InstructionEncoder | ClipTextEncoder | None = None,
        image_encoder: Any = None,
        scheduler: EulerDiscreteScheduler | None = None,
        settings: PredictorSettings | None = None,
        dtype: str | torch.dtype = "float32",
    ):
        super().__init__()
        self.unet, self.codec = unet, codec
        self.text_encoder, self.image_encoder = text_encoder, image_encoder
        self.scheduler = default_scheduler() if scheduler is None else scheduler
        self.settings = PredictorSettings(num_frames=unet.config["num_frames"]) if settings is None else settings
        self.dtype = as_dtype(dtype)
        self._source: Path | None = None
        channels = codec.latent_channels
        if (unet.config["in_channels"], unet.config["out_channels"]) != (2 * channels, channels):
            raise ValueError(
                f"unet maps {unet.config['in_channels']} to {unet.config['out_channels']} channels, expected "
                f"{2 * channels} to {channels}: noisy latents and first frame of a codec with {channels}"
            )
        if (text_encoder is None) == (image_encoder is None):
            raise ValueError("expected exactly one of text_encoder and image_encoder")
        if self.scheduler.config["timestep_type"] != "continuous":
            raise ValueError(
                f"scheduler has timestep_type {self.scheduler.config['timestep_type']!r}, expected 'continuous', "
                "SVD's, whose model time is log(sigma) / 4"
            )
        self.eval()

    @classmethod
    def create(
        cls,
        codec: Codec,
        *,
        num_frames: int = 8,
        sample_size: int | None = None,
        sigma_max: float = SIGMA_MAX,
        dtype: str | torch.dtype = "float32",
        device: str = "cpu",
        **unet_overrides: Any,
    ) -> "SVDPredictor":
        """An untrained small predictor, the embedded default; its weights follow torch's global seed.

        Args:
            codec: a fitted patch codec, or the stand-in for the codec that made the data's latents.
            num_frames: number of frames of a clip (F).
            sample_size: latents along each side, noted in the config.
            sigma_max: largest noise level.
            dtype: as in the constructor.
            device: device of the network's weights; ``"meta"`` for none.
            unet_overrides: arguments of ``UNetSpatioTemporalConditionModel``.
        """
        with torch.device(device):
            unet = default_unet(codec.latent_channels, num_frames, sample_size, **unet_overrides)
        text_encoder = InstructionEncoder(embedding_dim=unet.config["cross_attention_dim"])
        scheduler = default_scheduler(sigma_max=sigma_max)
        settings = PredictorSettings(num_frames=num_frames, predict_change=True)
        return cls(unet, codec, text_encoder=text_encoder, scheduler=scheduler, settings=settings, dtype=dtype)

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        text_encoder: str | Path | None,
        settings: PredictorSettings | None,
        dtype: str | torch.dtype,
        variant: str | None,
    ) -> "SVDPredictor":
        """Load a model folder; see :meth:`VideoPredictor.from_pretrained`."""
        unet = parts.load_unet(folder, variant)
        settings = settings or PredictorSettings.load(folder) or parts.published_settings(folder, unet, text_encoder)
        clip_folder = None if text_encoder is None else Path(text_encoder)
        text = parts.load_text_encoder(folder, clip_folder, unet.config["cross_attention_dim"], settings)
        predictor = cls(
            unet,
            parts.load_codec(folder, variant),
            text_encoder=text,
            image_encoder=parts.load_image_encoder(folder, variant) if text is None else None,
            scheduler=parts.load_scheduler(folder),
            settings=settings,
            dtype=dtype,
        )
        predictor._source = folder.resolve()
        return predictor

    @classmethod
    def skeleton(cls, folder: Path, *, dtype: str) -> "SVDPredictor":
        """See :meth:`VideoPredictor.skeleton`; text tokens stand for the condition, whatever it is."""
        unet = parts.empty_unet(folder)
        settings = PredictorSettings.load(folder) or parts.published_settings(folder, unet, None)
        width, length = unet.config["cross_attention_dim"], settings.text_max_length
        return cls(
            unet,
            parts.empty_codec(folder),
            text_encoder=InstructionEncoder(embedding_dim=width, max_length=length),
            scheduler=parts.load_scheduler(folder),
            settings=settings,
            dtype=dtype,
        )

    @staticmethod
    def recognizes(folder: Path) -> bool:
        """Whether the folder holds a UNet."""
        return (folder / "unet").is_dir()

    @staticmethod
    def check_folder(folder: Path) -> None:
        """Raise a ValueError that says why a folder holds no SVD, VPP or default model."""
        parts.check_folder(folder)

    @property
    def denoiser_network(self) -> nn.Module:
        """The UNet."""
        return self.unet

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a model folder; adapters are merged into it, and also written to ``adapter/``.

        What came from an SVD folder opens in ``StableVideoDiffusionPipeline.from_pretrained``.

        Raises:
            ValueError: a part that is copied from the original folder is no longer there.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if lora.has_adapter(self.unet):
            lora.save_merged(self.unet, folder / "unet")
        else:
            self.unet.save_pretrained(folder / "unet")
        if self._adapter:
            self.save_adapter(folder / "adapter")
        self.scheduler.save_pretrained(folder / "scheduler")
        self.settings.save(folder)
        if isinstance(self.text_encoder, ClipTextEncoder):
            self.text_encoder.save_pretrained(folder / "text_encoder", folder / "tokenizer")
        elif self.text_encoder is not None:
            self.text_encoder.save_pretrained(folder / "text_encoder")
        if not isinstance(self.codec, VAECodec):
            self.codec.save_pretrained(folder / "codec")
            return
        self.codec.save_pretrained(folder / "vae")
        if self.image_encoder is None:
            parts.copy_parts(self._source, folder)
        else:
            self.image_encoder.model.save_pretrained(folder / "image_encoder")
            self.image_encoder.feature_extractor.save_pretrained(folder / "feature_extractor")
        parts.write_model_index(folder)

    def forward(
        self,
        sample: Tensor,  # [N, F, C, h, w], noisy latents
        sigma: float | Tensor,  # one noise level, or [N]
        condition: Condition,  # of N clips, an SVDCondition
    ) -> Tensor:  # [N, F, C, h, w], in the autocast dtype, or float32 with predict_change
        """The denoiser's raw output at noise level ``sigma``, in the parameterization of the scheduler.

        The input is scaled by ``1 / sqrt(sigma^2 + 1)``, model time is ``log(sigma) / 4`` and the first frame's latents
        stand beside every frame on channels, as in SVD. With ``settings.predict_change`` the UNet denoises the change
        from the first frame, scaled by :func:`input_scale`; what is returned is still the output for the latents
        themselves.

        Raises:
            ValueError: shapes of sample, sigma and condition do not belong together.
        """
        assert isinstance(condition, SVDCondition)
        inputs = self.unet_inputs(sample, sigma, condition)
        with self.autocast(sample.device):
            output = self.run_denoiser(*inputs, return_dict=False)
        if self.settings.predict_change:
            share = self.codec.scaling_factor * first_frame_share(sigma, self.scheduler.config["prediction_type"])
            output = output + share * condition.image_latents.unsqueeze(1)
        return output

    def condition(
        self,
        *,
        instructions: Sequence[str] | None = None,
        first_frames: Tensor | None = None,  # [B, 3, H, W] in [0, 1]
        first_latents: Tensor | None = None,  # [B, C, h, w], as codec.encode gives them
    ) -> SVDCondition:
        """What the clips' predictions depend on; see :meth:`VideoPredictor.condition`.

        Raises:
            ValueError: instructions, or first frames for SVD's image encoder, are missing.
        """
        if first_latents is None:
            if first_frames is None:
                raise ValueError("both first_frames and first_latents are None, expected one of them")
            first_latents = self.codec.encode(first_frames)
        device = self.device
        if self.text_encoder is not None:
            if instructions is None or len(instructions) != first_latents.shape[0]:
                given = None if instructions is None else len(instructions)
                raise ValueError(f"instructions holds {given} texts, expected {first_latents.shape[0]}, one per clip")
            states = self.text_encoder(instructions)
        else:
            assert self.image_encoder is not None
            if first_frames is None:
                raise ValueError("first_frames is None, expected frames: this checkpoint's condition is a CLIP image")
            states = self.image_encoder(first_frames.to(device))
        ids = [float(self.settings.fps), float(self.settings.motion_bucket_id), self.settings.noise_aug_strength]
        return SVDCondition(
            image_latents=first_latents.to(device) / self.codec.scaling_factor,
            encoder_hidden_states=states.to(device),
            added_time_ids=torch.tensor(ids).to(device, non_blocking=True).repeat(first_latents.shape[0], 1),
        )

    def observed_condition(
        self,
        latents: Tensor,  # [B, C, h, w] of the clips' first frames, as codec.encode gives them
        instructions: Sequence[str],
    ) -> SVDCondition:
        """The condition of clips given as latents; a predictor whose condition is a CLIP image gets them decoded.

        Raises:
            ValueError: there is not one instruction per clip, or the codec cannot decode what the image encoder needs.
        """
        latents = latents.to(self.device)
        frames = None if self.image_encoder is None else self.codec.decode(latents.unsqueeze(1))[:, 0]
        return self.condition(instructions=instructions, first_latents=latents, first_frames=frames)

    def sampler(self, **overrides: Any) -> EulerHybridSampler:
        """A sampler with this model's noise schedule, prediction type and guidance; ``overrides`` are its fields.

        Raises:
            ValueError: the shift of a flow is given, or the scheduler's spacing is unknown.
        """
        if overrides.get("flow_shift") is not None:
            raise ValueError(f"flow_shift is {overrides['flow_shift']}, expected null: this model is no flow")
        config = self.scheduler.config
        kinds = {"karras": "use_karras_sigmas", "exponential": "use_exponential_sigmas"}
        schedule = next((name for name, key in kinds.items() if config[key]), None)
        if schedule is None and "schedule" not in overrides:
            raise ValueError("scheduler uses neither Karras nor exponential sigmas, expected one of them, or schedule=")
        sigma_max, sigma_min = config["sigma_max"], config["sigma_min"]
        fields = {
            "num_inference_steps": self.settings.num_inference_steps,
            "sigma_min": float(self.scheduler.sigmas[-2]) if sigma_min is None else sigma_min,
            "sigma_max": float(self.scheduler.sigmas[0]) if sigma_max is None else sigma_max,
            "rho": self.settings.rho,
            "schedule": schedule,
            "prediction_type": config["prediction_type"],
            "guidance_scale": self.settings.guidance_scale,
            "min_guidance_scale": self.settings.min_guidance_scale,
            "guidance_interval": self.settings.guidance_interval,
            "solver": self.settings.solver,
            "process": self.process,
            "unit_variance_start": config["timestep_spacing"] == "leading",
        }
        return EulerHybridSampler(**fields | overrides)

    def fingerprint(self) -> str:
        """A hash of everything that predictions depend on: weights, settings, noise schedule, precision, codec."""
        schedule = {name: value for name, value in self.scheduler.config.items() if not name.startswith("_")}
        weights = {name: value for name, value in self.state_dict().items() if not name.startswith("codec.")}
        return fingerprint([self.settings.values(), schedule, self.dtype, self.codec.fingerprint()], weights)

    def set_sampler(self, sampler: EulerHybridSampler) -> None:
        """Make a sampler's schedule, guidance and solver this model's own; they are saved with the model."""
        self.settings = replace(
            self.settings,
            num_inference_steps=sampler.num_inference_steps,
            rho=sampler.rho,
            guidance_scale=sampler.guidance_scale,
            min_guidance_scale=sampler.min_guidance_scale,
            guidance_interval=sampler.guidance_interval,
            solver=sampler.solver,
        )
        self.scheduler.register_to_config(sigma_min=sampler.sigma_min, sigma_max=sampler.sigma_max)

    @property
    def num_feature_layers(self) -> int:
        """Number of the UNet's up blocks."""
        blocks: Any = self.unet.up_blocks
        return len(blocks)

    def feature_extractor(self, layers: Sequence[int], *, seed: int = 0, compiled: bool = False) -> UpBlockFeatures:
        """Reads outputs of the UNet's up blocks; see :class:`UpBlockFeatures`."""

        def inputs(sample: Tensor, sigma: float, condition: Condition) -> tuple[Tensor, ...]:
            assert isinstance(condition, SVDCondition)
            return self.unet_inputs(sample, sigma, condition)

        def start(shape: torch.Size, device: torch.device) -> tuple[Tensor, float]:
            sampler, num_frames = self.sampler(), self.settings.num_frames
            return sampler.initial_noise((1, num_frames, *shape), seed=seed, device=device), sampler.sigmas[0]

        return UpBlockFeatures(
            self.unet, layers, inputs=inputs, start=start, autocast=self.autocast, seed=seed, compiled=compiled
        )

    def feature_parameters(self, layers: Sequence[int]) -> Iterable[nn.Parameter]:
        """Weights of the UNet up to the last chosen up block."""
        return feature_unet(self.unet, layers, []).parameters()

    def frozen_network(self, network: nn.Module) -> "SVDPredictor":
        """The same predictor around another UNet."""
        assert isinstance(network, UNetSpatioTemporalConditionModel)
        return SVDPredictor(
            network,
            self.codec,
            text_encoder=self.text_encoder,
            image_encoder=self.image_encoder,
            scheduler=self.scheduler,
            settings=self.settings,
            dtype=self.dtype,
        )

    def _frozen_parts(self) -> list[nn.Module]:
        encoders = (self.image_encoder, self.text_encoder)
        frozen = [part for part in encoders if part is not None and not isinstance(part, InstructionEncoder)]
        return [*super()._frozen_parts(), *frozen]

    def unet_inputs(
        self, sample: Tensor, sigma: float | Tensor, condition: SVDCondition
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Arguments of the UNet: input, model time, cross-attention states, added time ids."""
        rows, latents = sample.shape[0], condition.image_latents
        if sample.ndim != 5 or latents.shape != (rows, *sample.shape[2:]):
            raise ValueError(
                f"sample has shape {tuple(sample.shape)} with image latents of {tuple(latents.shape)}, "
                "expected [N, F, C, h, w] and [N, C, h, w]"
            )
        scale: float | Tensor
        if isinstance(sigma, Tensor):
            if sigma.shape != (rows,):
                raise ValueError(f"sigma has shape {tuple(sigma.shape)}, expected a float or [{rows}]")
            scale, time = (sigma.square() + 1).rsqrt().view(-1, 1, 1, 1, 1), self.process.model_time(sigma)
        else:
            scale, time = 1 / math.sqrt(sigma * sigma + 1), sample.new_full((rows,), self.process.model_time(sigma))
        first = latents.unsqueeze(1).expand_as(sample).to(sample.dtype)
        if self.settings.predict_change:
            sample, scale = sample - first * self.codec.scaling_factor, input_scale(sigma)
        stacked = torch.cat([sample * scale, first], dim=2)
        dtype = self.unet.conv_in.weight.dtype
        return stacked.to(dtype), time, condition.encoder_hidden_states.to(dtype), condition.added_time_ids
