"""The video predictor: UNet, codec, text encoder and noise schedule as one checkpoint folder."""

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.unets.unet_spatio_temporal_condition import UNetSpatioTemporalConditionModel
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from vampo_core.diffusion.sampler import EulerHybridSampler
from vampo_core.diffusion.trajectory import Denoise
from vampo_core.models import lora
from vampo_core.models.codecs.codec import AnyCodec, LatentCodec, PatchCodec, VAECodec
from vampo_core.models.fingerprint import fingerprint
from vampo_core.models.settings import PredictorSettings, as_dtype
from vampo_core.models.svd import folder as parts
from vampo_core.models.svd.change import first_frame_share, input_scale
from vampo_core.models.svd.condition import Condition
from vampo_core.models.svd.default import SIGMA_MAX, default_scheduler, default_unet
from vampo_core.models.svd.features import DEFAULT_LAYERS, FeatureExtractor
from vampo_core.models.text.text import ClipTextEncoder, InstructionEncoder

if TYPE_CHECKING:
    from vampo_core.models.svd.image_encoder import ClipImageEncoder


class VideoPredictor(nn.Module):
    """Predicts latent videos from a first frame and an instruction.

    Weights are float32; ``dtype`` is the precision of autocast around the UNet. Codec, CLIP encoders and, with LoRA,
    the UNet's own weights are frozen. Dropout stays inactive in ``train()`` mode too, because a policy must score
    its actions with the network that drew them, unless ``dropout_active`` is set.

    Args:
        unet: denoiser; takes noisy latents and the first frame's, side by side on channels.
        codec: frames to latents and back.
        text_encoder: instructions to cross-attention tokens; None for SVD's own image condition.
        image_encoder: SVD's image condition, where there is no text encoder.
        scheduler: noise range and prediction type; EDM's range by default.
        settings: the rest of what defines the model.
        dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
    """

    def __init__(
        self,
        unet: UNetSpatioTemporalConditionModel,
        codec: AnyCodec,
        *,
        text_encoder: InstructionEncoder | ClipTextEncoder | None = None,
        image_encoder: "ClipImageEncoder | None" = None,
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
        self.dropout_active = False
        self._adapter: tuple[Any, ...] = ()  # in a tuple, or the UNet would be registered twice
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

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.unet.parameters()).device

    @classmethod
    def create(
        cls,
        codec: PatchCodec | LatentCodec,
        *,
        num_frames: int = 8,
        sample_size: int | None = None,
        sigma_max: float = SIGMA_MAX,
        dtype: str | torch.dtype = "float32",
        **unet_overrides: Any,
    ) -> "VideoPredictor":
        """An untrained small predictor, the embedded default; its weights follow torch's global seed.

        Args:
            codec: a fitted patch codec, or what stands for the one that made the data's latents.
            num_frames: F.
            sample_size: latents along each side, noted in the config.
            sigma_max: largest noise level.
            dtype: as in the constructor.
            unet_overrides: arguments of ``UNetSpatioTemporalConditionModel``.
        """
        unet = default_unet(codec.latent_channels, num_frames, sample_size, **unet_overrides)
        text_encoder = InstructionEncoder(embedding_dim=unet.config["cross_attention_dim"])
        scheduler = default_scheduler(sigma_max=sigma_max)
        settings = PredictorSettings(num_frames=num_frames, predict_change=True)
        return cls(unet, codec, text_encoder=text_encoder, scheduler=scheduler, settings=settings, dtype=dtype)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        text_encoder: str | Path | None = None,
        settings: PredictorSettings | None = None,
        dtype: str | torch.dtype = "float32",
        variant: str | None = None,
    ) -> "VideoPredictor":
        """Load a checkpoint folder: one of ours, an SVD folder, or an SVD folder with CLIP text (VPP, VAMPO).

        Args:
            folder: the checkpoint.
            text_encoder: folder of a CLIP text model, for checkpoints published without it.
            settings: instead of the folder's ``vampo.json``, or of defaults where it has none.
            dtype: as in the constructor.
            variant: of the weight files, e.g. ``"fp16"``.

        Raises:
            ValueError: the folder is no checkpoint of a video predictor; the message says which part is amiss.
        """
        folder = Path(folder)
        parts.check_folder(folder)
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

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a checkpoint folder; adapters are merged into what is written, and written to ``adapter/`` alone too.

        What came from an SVD folder opens in ``StableVideoDiffusionPipeline.from_pretrained``.

        Raises:
            ValueError: a part that is copied from the original folder is no longer there.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self._adapter:
            lora.save_merged(self.unet, folder / "unet")
            self.save_adapter(folder / "adapter")
        else:
            self.unet.save_pretrained(folder / "unet")
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
        condition: Condition,  # of N clips
    ) -> Tensor:  # [N, F, C, h, w], in the autocast dtype, or float32 with predict_change
        """The denoiser's raw output at noise level ``sigma``, in the parameterisation of the scheduler.

        The input is scaled by ``1 / sqrt(sigma^2 + 1)``, model time is ``log(sigma) / 4`` and the first frame's latents
        stand beside every frame on channels, as in SVD. With ``settings.predict_change`` the UNet denoises the change
        from the first frame, scaled by :func:`input_scale`; what is returned is still the output for the latents
        themselves.

        Raises:
            ValueError: shapes of sample, sigma and condition do not belong together.
        """
        inputs = self.unet_inputs(sample, sigma, condition)
        with self.autocast(sample.device):
            output = self.unet(*inputs, return_dict=False)[0]
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
    ) -> Condition:
        """What the clips' predictions depend on, from first frames or their latents.

        Carries gradient to a trainable text encoder; :meth:`Condition.detach` cuts it.

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
        return Condition(
            image_latents=first_latents.to(device) / self.codec.scaling_factor,
            encoder_hidden_states=states.to(device),
            added_time_ids=torch.tensor(ids, device=device).repeat(first_latents.shape[0], 1),
        )

    def observed_condition(
        self,
        latents: Tensor,  # [B, C, h, w] of the clips' first frames, as codec.encode gives them
        instructions: Sequence[str],
    ) -> Condition:
        """The condition of clips given as latents; a predictor whose condition is a CLIP image gets them decoded.

        Raises:
            ValueError: there is not one instruction per clip, or the codec cannot decode what the image encoder needs.
        """
        latents = latents.to(self.device)
        frames = None if self.image_encoder is None else self.codec.decode(latents.unsqueeze(1))[:, 0]
        return self.condition(instructions=instructions, first_latents=latents, first_frames=frames)

    def features(
        self,
        first_frames: Tensor | None = None,  # [B, 3, H, W] in [0, 1]
        instructions: Sequence[str] | None = None,
        *,
        first_latents: Tensor | None = None,  # [B, C, h, w], as codec.encode gives them
        layers: Sequence[int] = DEFAULT_LAYERS,
        seed: int = 0,
    ) -> Tensor:  # [B, F, D, h, w], in the autocast dtype
        """Predictive features for a policy from one denoiser forward; see :class:`FeatureExtractor`.

        Differentiable in what is trainable; nothing is decoded. Errors are those of :meth:`condition` and of the
        extractor.
        """
        condition = self.condition(instructions=instructions, first_frames=first_frames, first_latents=first_latents)
        return FeatureExtractor(self, layers=layers, seed=seed)(condition)

    def denoiser(self, condition: Condition, *, guidance: bool = False, model: Callable | None = None) -> Denoise:
        """The callable that :class:`EulerHybridSampler` wants, for these clips.

        Args:
            condition: of all B clips; the sampler's rows pick theirs.
            guidance: run the unconditional half too (:attr:`EulerHybridSampler.uses_guidance`).
            model: called in place of this predictor, e.g. the same one wrapped for distributed training, or its base.
        """
        model = self if model is None else model

        def denoise(sample: Tensor, sigma: float, clip_index: Tensor | None) -> tuple[Tensor, Tensor | None]:
            rows = condition if clip_index is None else condition.index_select(clip_index)
            if not guidance:
                return model(sample, sigma, rows), None
            both = Condition.cat([rows.unconditional(), rows])
            uncond, cond = model(torch.cat([sample, sample]), sigma, both).chunk(2)
            return cond, uncond

        return denoise

    def sampler(self, **overrides: Any) -> EulerHybridSampler:
        """A sampler with this model's noise schedule, prediction type and guidance; ``overrides`` are its fields."""
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
            "unit_variance_start": config["timestep_spacing"] == "leading",
        }
        return EulerHybridSampler(**fields | overrides)

    def fingerprint(self) -> str:
        """Changes with all that predictions depend on: weights, settings, noise schedule, precision, codec."""
        schedule = {name: value for name, value in self.scheduler.config.items() if not name.startswith("_")}
        weights = {name: value for name, value in self.state_dict().items() if not name.startswith("codec.")}
        return fingerprint([asdict(self.settings), schedule, self.dtype, self.codec.fingerprint()], weights)

    def set_sampler(self, sampler: EulerHybridSampler) -> None:
        """Make the schedule and guidance of a sampler this model's own, in the folders it is saved to as well."""
        self.settings = replace(
            self.settings,
            num_inference_steps=sampler.num_inference_steps,
            rho=sampler.rho,
            guidance_scale=sampler.guidance_scale,
            min_guidance_scale=sampler.min_guidance_scale,
        )
        self.scheduler.register_to_config(sigma_min=sampler.sigma_min, sigma_max=sampler.sigma_max)

    def train(self, mode: bool = True) -> "VideoPredictor":
        """As ``nn.Module.train``, but frozen parts stay in eval mode, and dropout unless ``dropout_active``."""
        super().train(mode)
        for frozen in (self.codec, self.image_encoder, self.text_encoder):
            if isinstance(frozen, nn.Module) and not isinstance(frozen, InstructionEncoder):
                frozen.eval()
        if not self.dropout_active:
            for module in self.unet.modules():
                if isinstance(module, _DropoutNd):
                    module.eval()
        return self

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass: less memory, about a third more time."""
        self.unet.enable_gradient_checkpointing()

    def add_lora(
        self,
        *,
        rank: int = 16,
        alpha: float | None = None,
        target_modules: Sequence[str] = lora.DEFAULT_TARGETS,
        dropout: float = 0.0,
        base_dtype: str | torch.dtype | None = None,
    ) -> None:
        """Freeze the UNet and train low-rank adapters, which are float32 whatever the base is.

        Args:
            rank: of the adapters.
            alpha: adapters count ``alpha / rank``; ``rank`` by default.
            target_modules: suffixes of the layers' names; the attention projections by default.
            dropout: of the adapters, inactive unless ``dropout_active``.
            base_dtype: cast the frozen weights, e.g. to ``"bfloat16"``, to halve their memory.
        """
        self._check_no_adapter()
        model = lora.add_adapter(self.unet, rank, rank if alpha is None else alpha, target_modules, dropout)
        self._set_adapter(model, base_dtype)

    def load_adapter(self, folder: str | Path, *, trainable: bool = True) -> None:
        """Put a saved adapter on this base model.

        Raises:
            ValueError: the folder is no adapter, or this model has one already.
        """
        self._check_no_adapter()
        self._set_adapter(lora.load_adapter(self.unet, folder, trainable), None)

    def save_adapter(self, folder: str | Path) -> None:
        """Write the adapter alone, as PEFT does: ``PeftModel.from_pretrained(unet, folder)`` loads it."""
        if not self._adapter:
            raise ValueError("this model has no adapter, expected add_lora or load_adapter before")
        self._adapter[0].save_pretrained(str(folder))

    def merge_adapter(self) -> None:
        """Add the adapter to the UNet's weights and remove it."""
        if not self._adapter:
            raise ValueError("this model has no adapter, expected add_lora or load_adapter before")
        self.unet = self._adapter[0].merge_and_unload()
        self._adapter = ()

    def _check_no_adapter(self) -> None:
        if self._adapter:
            raise ValueError("this model has an adapter already, expected merge_adapter before another")

    def _set_adapter(self, model: Any, base_dtype: str | torch.dtype | None) -> None:
        if base_dtype is not None:
            for name, parameter in self.unet.named_parameters():
                if "lora_" not in name:
                    parameter.data = parameter.data.to(as_dtype(base_dtype))
        self._adapter = (model,)
        self.train(self.training)

    def unet_inputs(
        self, sample: Tensor, sigma: float | Tensor, condition: Condition
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
            scale, time = (sigma.square() + 1).rsqrt().view(-1, 1, 1, 1, 1), sigma.log() / 4
        else:
            scale, time = 1 / math.sqrt(sigma * sigma + 1), sample.new_full((rows,), math.log(sigma) / 4)
        first = latents.unsqueeze(1).expand_as(sample).to(sample.dtype)
        if self.settings.predict_change:
            sample, scale = sample - first * self.codec.scaling_factor, input_scale(sigma)
        stacked = torch.cat([sample * scale, first], dim=2)
        dtype = self.unet.conv_in.weight.dtype
        return stacked.to(dtype), time, condition.encoder_hidden_states.to(dtype), condition.added_time_ids

    def autocast(self, device: torch.device):
        """Autocast in the predictor's ``dtype``; nothing for float32."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(device.type, self.dtype)
