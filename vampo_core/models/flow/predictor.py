"""A backbone on a rectified flow: video transformer, codec, text encoder and noise levels as one model folder."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from torch import Tensor, nn

from vampo_core.diffusion.process import FLOW_PREDICTION, Flow
from vampo_core.diffusion.sampler import EulerHybridSampler
from vampo_core.models import lora
from vampo_core.models.codecs.base import Codec
from vampo_core.models.codecs.wan_vae import WanVAECodec
from vampo_core.models.condition import Condition
from vampo_core.models.fingerprint import fingerprint
from vampo_core.models.flow import folder as parts
from vampo_core.models.flow.condition import FlowCondition
from vampo_core.models.flow.features import BlockFeatures, feature_transformer
from vampo_core.models.loading import empty_model, load_model
from vampo_core.models.predictor import VideoPredictor
from vampo_core.models.settings import PredictorSettings, as_dtype
from vampo_core.models.text.lazy import MAX_TOKENS, LazyTextEncoder
from vampo_core.models.text.text import InstructionEncoder


class FlowPredictor(VideoPredictor):
    """A predictor on a video transformer whose first latent frame is given; see :class:`VideoPredictor`.

    The first latent frame of a clip is the condition: it goes into the transformer as it is, and is neither noised nor
    predicted. A backbone says what its transformer is called and takes: the class variables, and the abstract methods.

    Args:
        transformer: denoiser; takes and returns videos of the codec's channels.
        codec: codec between frames and latents, which are not scaled again.
        text_encoder: encoder of instructions to cross-attention tokens.
        scheduler: noise levels of the flow.
        settings: everything else that defines the model.
        dtype: precision of autocast: ``"float32"``, ``"bfloat16"`` or ``"float16"``.

    Raises:
        ValueError: the parts do not fit each other.
    """

    transformer_class: ClassVar[Any]
    """Class of the transformer in diffusers."""
    blocks: ClassVar[str]
    """The transformer's name for its list of blocks."""
    input_layer: ClassVar[str]
    """The transformer's name for the layer that takes the video, whose dtype counts."""
    published_text_encoder: ClassVar[type[LazyTextEncoder]]
    """Text encoder of published folders."""
    pipeline: ClassVar[dict[str, Any]]
    """``model_index.json`` of published folders."""
    fixed_parts: ClassVar[tuple[str, ...]] = ()
    """Entries of ``pipeline`` that hold for every folder that is saved."""
    num_mask_channels: ClassVar[int] = 0
    """Channels that the transformer takes beside the latents'."""

    num_given_frames = 1
    process: Flow

    def __init__(
        self,
        transformer: Any,
        codec: Codec,
        *,
        text_encoder: Any,
        scheduler: UniPCMultistepScheduler | None = None,
        settings: PredictorSettings,
        dtype: str | torch.dtype = "float32",
    ):
        super().__init__()
        self.transformer, self.codec, self.text_encoder = transformer, codec, text_encoder
        self.scheduler = parts.flow_scheduler() if scheduler is None else scheduler
        self.settings, self.dtype = settings, as_dtype(dtype)
        self.process = Flow(self.scheduler.config["num_train_timesteps"])
        self._pipeline_index: dict[str, Any] | None = None  # of the folder that the model came from
        channels = (transformer.config["in_channels"], transformer.config["out_channels"])
        expected = (codec.latent_channels + self.num_mask_channels, codec.latent_channels)
        if channels != expected:
            raise ValueError(
                f"transformer maps {channels[0]} to {channels[1]} channels, expected {expected[0]} to {expected[1]} "
                "with this codec: the first frame is given in its place, not on channels"
            )
        if codec.scaling_factor != 1:
            raise ValueError(f"codec has scaling_factor {codec.scaling_factor}, expected 1")
        if settings.num_frames < 2:
            raise ValueError(f"num_frames is {settings.num_frames}, expected at least 2: the first one is given")
        self.eval()

    @classmethod
    def create(
        cls,
        codec: Codec,
        *,
        num_frames: int = 8,
        sample_size: int | None = None,
        sigma_max: float = 1.0,
        dtype: str | torch.dtype = "float32",
        device: str = "cpu",
        **overrides: Any,
    ) -> "FlowPredictor":
        """An untrained small predictor; its weights follow torch's global seed.

        Args:
            codec: a fitted patch codec, or the stand-in for the codec that made the data's latents.
            num_frames: number of frames of a clip (F).
            sample_size: unused; a transformer's weights do not depend on it.
            sigma_max: unused; a flow starts from pure noise.
            dtype: as in the constructor.
            device: device of the transformer's weights; ``"meta"`` for none.
            overrides: arguments of the transformer.
        """
        with torch.device(device):
            transformer = cls.new_transformer(codec.latent_channels, **overrides)
        text_encoder = InstructionEncoder(embedding_dim=cls.text_width(transformer))
        settings = PredictorSettings(num_frames=num_frames, predict_change=True)
        return cls(transformer, codec, text_encoder=text_encoder, settings=settings, dtype=dtype)

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        text_encoder: str | Path | None,
        settings: PredictorSettings | None,
        dtype: str | torch.dtype,
        variant: str | None,
    ) -> "FlowPredictor":
        """Load a model folder; see :meth:`VideoPredictor.from_pretrained`."""
        transformer = load_model(cls.transformer_class, folder / "transformer", variant)
        width = cls.text_width(transformer)
        predictor = cls(
            transformer,
            parts.load_codec(folder, variant),
            text_encoder=parts.load_text_encoder(folder, text_encoder, cls.published_text_encoder, width),
            scheduler=parts.load_scheduler(folder),
            settings=settings or PredictorSettings.load(folder) or cls.published_settings(),
            dtype=dtype,
        )
        predictor._pipeline_index = parts.read_model_index(folder)
        return predictor

    @classmethod
    def skeleton(cls, folder: Path, *, dtype: str) -> "FlowPredictor":
        """See :meth:`VideoPredictor.skeleton`; a small encoder stands for the published one."""
        transformer = empty_model(cls.transformer_class, folder / "transformer")
        is_own = (folder / "codec").is_dir()
        text = InstructionEncoder(cls.text_width(transformer), max_length=16 if is_own else MAX_TOKENS)
        return cls(
            transformer,
            parts.empty_codec(folder),
            text_encoder=text,
            scheduler=parts.load_scheduler(folder),
            settings=PredictorSettings.load(folder) or cls.published_settings(),
            dtype=dtype,
        )

    @classmethod
    def load_encoders(cls, folder: Path, text_encoder: str | Path | None) -> tuple[Codec, Any]:
        """See :meth:`VideoPredictor.load_encoders`."""
        width = cls.text_width(empty_model(cls.transformer_class, folder / "transformer"))
        text = parts.load_text_encoder(folder, text_encoder, cls.published_text_encoder, width)
        return parts.load_codec(folder, None), text

    @classmethod
    def recognizes(cls, folder: Path) -> bool:
        """Whether the folder holds a transformer of this class."""
        return parts.transformer_config(folder).get("_class_name") == cls.transformer_class.__name__

    @staticmethod
    @abstractmethod
    def new_transformer(latent_channels: int, **overrides: Any) -> Any:
        """An untrained small transformer."""

    @staticmethod
    @abstractmethod
    def text_width(transformer: Any) -> int:
        """Width of the text tokens that a transformer takes (D)."""

    @staticmethod
    @abstractmethod
    def published_settings() -> PredictorSettings:
        """What a published folder, which has no settings of ours, is sampled with."""

    @abstractmethod
    def network_inputs(
        self,
        video: Tensor,  # [N, C, F, h, w]: the given frame, then noisy ones
        time: Tensor,  # [N]: model time of the noisy frames
        tokens: Tensor,  # [N, L, D]
    ) -> dict[str, Tensor]:
        """Arguments of the transformer, the video first, as ``hidden_states``."""

    @property
    def denoiser_network(self) -> nn.Module:
        """The transformer."""
        return self.transformer

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a model folder; adapters are merged into it, and also written to ``adapter/``.

        What came from a folder of diffusers' pipeline opens in that pipeline.

        Raises:
            OSError: the text encoder's folder, which is copied, is no longer there.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if lora.has_adapter(self.transformer):
            lora.save_merged(self.transformer, folder / "transformer")
        else:
            self.transformer.save_pretrained(folder / "transformer")
        if self._adapter:
            self.save_adapter(folder / "adapter")
        self.scheduler.save_pretrained(folder / "scheduler")
        self.settings.save(folder)
        parts.save_codec_and_text(self.codec, self.text_encoder, folder)
        if isinstance(self.codec, WanVAECodec) and not isinstance(self.text_encoder, InstructionEncoder):
            parts.write_model_index(folder, self._pipeline_index, self.pipeline, *self.fixed_parts)

    def forward(
        self,
        sample: Tensor,  # [N, F - 1, C, h, w], noisy latents of the frames that are predicted
        sigma: float | Tensor,  # one noise level, or [N]
        condition: Condition,  # of N clips, a FlowCondition
    ) -> Tensor:  # [N, F - 1, C, h, w], in the autocast dtype, or float32 with predict_change
        """The velocity ``noise - x0`` at noise level ``sigma``.

        With ``settings.predict_change`` the transformer denoises the change from the first frame. Noise and data are
        interpolated, so the change of noisy latents is ``x - (1 - sigma) first``, and its velocity is larger by
        ``first``; what is returned is still the velocity of the latents themselves.

        Raises:
            ValueError: shapes of sample, sigma and condition do not belong together, or do not divide into patches.
        """
        assert isinstance(condition, FlowCondition)
        inputs = self.transformer_inputs(sample, sigma, condition)
        with self.autocast(sample.device):
            output = self.run_denoiser(**inputs, return_dict=False)
        output = output.transpose(1, 2)[:, 1:]
        return output - condition.image_latents.unsqueeze(1) if self.settings.predict_change else output

    def transformer_inputs(self, sample: Tensor, sigma: float | Tensor, condition: FlowCondition) -> dict[str, Tensor]:
        """Arguments of the transformer: whole videos, their times, text tokens."""
        rows, first = sample.shape[0], condition.image_latents
        if sample.ndim != 5 or first.shape != (rows, *sample.shape[2:]):
            raise ValueError(
                f"sample has shape {tuple(sample.shape)} with image latents of {tuple(first.shape)}, "
                "expected [N, F - 1, C, h, w] and [N, C, h, w]"
            )
        if not isinstance(sigma, Tensor):
            sigma = sample.new_full((), sigma)  # filled on the device: a copy would wait for it
        if sigma.ndim and sigma.shape != (rows,):
            raise ValueError(f"sigma has shape {tuple(sigma.shape)}, expected a float or [{rows}]")
        steps, height, width = self.transformer.config["patch_size"]
        if (sample.shape[1] + 1) % steps or sample.shape[3] % height or sample.shape[4] % width:
            raise ValueError(
                f"sample has shape {tuple(sample.shape)}, expected sides that divide into patches of {height} x {width}"
            )
        if self.settings.predict_change:
            sample = sample - (1 - sigma.view(-1, 1, 1, 1, 1)) * first.unsqueeze(1)
        video = torch.cat([first.to(sample).unsqueeze(1), sample], dim=1).transpose(1, 2)
        dtype = self.transformer.get_submodule(self.input_layer).weight.dtype
        time = self.process.model_time(sigma).expand(rows)
        return self.network_inputs(video.to(dtype), time, condition.encoder_hidden_states.to(dtype))

    def condition(
        self,
        *,
        instructions: Sequence[str] | None = None,
        first_frames: Tensor | None = None,  # [B, 3, H, W] in [0, 1]
        first_latents: Tensor | None = None,  # [B, C, h, w], as codec.encode gives them
    ) -> FlowCondition:
        """What the clips' predictions depend on; see :meth:`VideoPredictor.condition`.

        Raises:
            ValueError: first frames or instructions are missing.
        """
        if first_latents is None:
            if first_frames is None:
                raise ValueError("both first_frames and first_latents are None, expected one of them")
            first_latents = self.codec.encode(first_frames)
        num_clips = first_latents.shape[0]
        if instructions is None or len(instructions) != num_clips:
            given = None if instructions is None else len(instructions)
            raise ValueError(f"instructions holds {given} texts, expected {num_clips}, one per clip")
        states = self.text_encoder([*instructions, self.settings.negative_prompt]).to(self.device)
        return FlowCondition(
            image_latents=first_latents.to(self.device),
            encoder_hidden_states=states[:-1],
            negative_hidden_states=states[-1:].expand(num_clips, -1, -1),
        )

    def observed_condition(
        self,
        latents: Tensor,  # [B, C, h, w] of the clips' first frames, as codec.encode gives them
        instructions: Sequence[str],
    ) -> FlowCondition:
        """The condition of clips given as latents."""
        return self.condition(instructions=instructions, first_latents=latents)

    def sampler(self, **overrides: Any) -> EulerHybridSampler:
        """A sampler with this model's flow and guidance, the same for every frame; ``overrides`` are its fields.

        Raises:
            ValueError: noise levels are given, or a shift where the model's scheduler has none.
        """
        overrides = {name: value for name, value in overrides.items() if value is not None}
        if "schedule" in overrides:
            raise ValueError(f"schedule is {overrides['schedule']!r}, expected none: this model has one of its own")
        fields: dict[str, Any] = {
            "num_inference_steps": self.settings.num_inference_steps,
            "prediction_type": FLOW_PREDICTION,
            "guidance_scale": self.settings.guidance_scale,
            "guidance_interval": self.settings.guidance_interval,
            "solver": self.settings.solver,
            "process": self.process,
        }
        fields |= parts.noise_levels(self.scheduler.config, overrides) | overrides
        return EulerHybridSampler(**fields | {"min_guidance_scale": fields["guidance_scale"]})

    def set_sampler(self, sampler: EulerHybridSampler) -> None:
        """Make a sampler's shift, guidance and solver this model's own; they are saved with the model."""
        self.settings = replace(
            self.settings,
            num_inference_steps=sampler.num_inference_steps,
            guidance_scale=sampler.guidance_scale,
            guidance_interval=sampler.guidance_interval,
            solver=sampler.solver,
        )
        if not self.scheduler.config["use_karras_sigmas"]:
            self.scheduler.register_to_config(flow_shift=sampler.flow_shift)

    def fingerprint(self) -> str:
        """A hash of everything that predictions depend on: weights, settings, flow, precision, codec."""
        config = self.scheduler.config
        karras = ("use_karras_sigmas", "sigma_min", "sigma_max") if config["use_karras_sigmas"] else ()
        schedule = [config[name] for name in ("flow_shift", "num_train_timesteps", *karras)]
        weights = {name: value for name, value in self.state_dict().items() if not name.startswith("codec.")}
        text = None if isinstance(self.text_encoder, nn.Module) else self.text_encoder.fingerprint()
        return fingerprint([self.settings.values(), schedule, self.dtype, self.codec.fingerprint(), text], weights)

    @property
    def num_feature_layers(self) -> int:
        """Number of the transformer's blocks."""
        return len(getattr(self.transformer, self.blocks))

    def feature_extractor(self, layers: Sequence[int], *, seed: int = 0, compiled: bool = False) -> BlockFeatures:
        """Reads outputs of the transformer's blocks; see :class:`BlockFeatures`."""

        def inputs(sample: Tensor, sigma: float, condition: Condition) -> dict[str, Tensor]:
            assert isinstance(condition, FlowCondition)
            return self.transformer_inputs(sample, sigma, condition)

        def start(shape: torch.Size, device: torch.device) -> tuple[Tensor, float]:
            sampler, num_frames = self.sampler(), self.settings.num_frames - self.num_given_frames
            return sampler.initial_noise((1, num_frames, *shape), seed=seed, device=device), sampler.sigmas[0]

        return BlockFeatures(
            self.transformer,
            self.blocks,
            layers,
            inputs=inputs,
            start=start,
            autocast=self.autocast,
            seed=seed,
            compiled=compiled,
        )

    def feature_parameters(self, layers: Sequence[int]) -> Iterable[nn.Parameter]:
        """Weights of the transformer up to the last chosen block."""
        return feature_transformer(self.transformer, self.blocks, layers, []).parameters()

    def frozen_network(self, network: nn.Module) -> "FlowPredictor":
        """The same predictor around another transformer."""
        assert isinstance(network, self.transformer_class)
        return type(self)(
            network,
            self.codec,
            text_encoder=self.text_encoder,
            scheduler=self.scheduler,
            settings=self.settings,
            dtype=self.dtype,
        )

    def _frozen_parts(self) -> list[nn.Module]:
        text = self.text_encoder
        is_frozen = isinstance(text, nn.Module) and not isinstance(text, InstructionEncoder)
        return [*super()._frozen_parts(), *([text] if is_frozen else [])]
