"""What a backbone is to the rest of the library: a process, a denoiser, a condition, a codec, features, a folder."""

import contextlib
import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from vampo_core.diffusion.process import Process
from vampo_core.diffusion.sampler import EulerHybridSampler
from vampo_core.diffusion.trajectory import Denoise
from vampo_core.models import lora
from vampo_core.models.codecs.base import Codec
from vampo_core.models.compiled import CompiledDenoiser
from vampo_core.models.condition import Condition
from vampo_core.models.registry import DEFAULT, backbone_class, backbone_of
from vampo_core.models.settings import PredictorSettings, as_dtype

__all__ = ["Condition", "FeatureExtractor", "Reference", "VideoPredictor"]

Reference = Callable[[Tensor, float | Tensor, Condition], Tensor]
"""``reference(sample, sigma, condition)``: the raw output of a frozen model, see :meth:`VideoPredictor.forward`."""


class FeatureExtractor(Protocol):
    """Predictive features from one forward pass of the denoiser; see :meth:`VideoPredictor.feature_extractor`."""

    seed: int

    def __call__(self, condition: Condition) -> Tensor:  # [B, F, D, h, w], in the autocast dtype
        """Features of B clips."""
        ...


class VideoPredictor(nn.Module, ABC):
    """Predicts latent videos from a first frame and an instruction.

    Weights are float32; ``dtype`` is the precision of autocast around the denoiser. Codec, CLIP encoders and, with
    LoRA, the denoiser's own weights are frozen. Dropout is never active, because a policy must score its actions with
    the network that drew them.

    A backbone implements the abstract methods, sets ``process``, ``codec``, ``text_encoder`` and ``settings``, and
    calls its network through :meth:`run_denoiser`. Where ``num_given_frames`` is above 0, the condition gives the first
    frames of a clip, and the denoiser takes and returns the others (:meth:`predicted`, :meth:`whole`).
    """

    num_given_frames: int = 0
    process: Process
    codec: Codec
    text_encoder: Any
    settings: PredictorSettings
    dtype: torch.dtype

    def __init__(self) -> None:
        super().__init__()
        self._adapter: tuple[Any, ...] = ()  # in a tuple, or the denoiser would be registered twice
        self._compiled: CompiledDenoiser | None = None

    @staticmethod
    def create(
        codec: Codec,
        *,
        backbone: str = DEFAULT,
        num_frames: int = 8,
        sample_size: int | None = None,
        sigma_max: float = 80.0,
        dtype: str | torch.dtype = "float32",
        **network_overrides: Any,
    ) -> "VideoPredictor":
        """An untrained small predictor, by default the embedded one; its weights follow torch's global seed.

        Args:
            codec: a fitted patch codec, or the stand-in for the codec that made the data's latents.
            backbone: ``"svd"``, ``"wan"`` or ``"cosmos"``.
            num_frames: number of frames of a clip (F).
            sample_size: latents along each side, noted in the config.
            sigma_max: largest noise level of EDM's process; a flow ends at pure noise.
            dtype: precision of autocast.
            network_overrides: arguments of the denoiser network.
        """
        options = {"num_frames": num_frames, "sample_size": sample_size, "sigma_max": sigma_max, "dtype": dtype}
        return backbone_class(backbone).create(codec, **options, **network_overrides)

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
        """Load a model folder: one of ours, or of SVD, SVD with CLIP text (VPP, VAMPO), Wan2.2-TI2V, Cosmos-Predict2.5.

        Args:
            folder: folder of the model.
            text_encoder: folder of a CLIP text model, for models that were published without it.
            settings: settings that replace the folder's ``vampo.json``, or the defaults where it has none.
            dtype: precision of autocast: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
            variant: variant of the weight files, such as ``"fp16"``; by default the one that the folder holds.

        Raises:
            ValueError: no backbone knows the folder; the message says what is missing.
        """
        options = {"text_encoder": text_encoder, "settings": settings, "dtype": dtype, "variant": variant}
        return backbone_of(Path(folder)).load(Path(folder), **options)

    @staticmethod
    @abstractmethod
    def recognizes(folder: Path) -> bool:
        """Whether a folder holds a model of this backbone, or tries to."""

    @staticmethod
    @abstractmethod
    def check_folder(folder: Path) -> None:
        """Raise a ValueError that says why a folder holds no model of this backbone."""

    @classmethod
    def skeleton(cls, folder: Path, *, dtype: str) -> "VideoPredictor":
        """A folder's model whose network has no weights (torch's meta device), for planning memory."""
        raise ValueError(f"{folder} holds a {cls.__name__}, which has no skeleton to plan its memory with")

    @classmethod
    def load_encoders(cls, folder: Path, text_encoder: str | Path | None) -> tuple[Codec, Any]:
        """Codec and text encoder of a folder; its network is not loaded where the backbone can do without."""
        return (model := cls.from_pretrained(folder, text_encoder=text_encoder)).codec, model.text_encoder

    @abstractmethod
    def save_pretrained(self, folder: str | Path) -> None:
        """Write a model folder; adapters are merged into it, and also written to ``adapter/``."""

    @property
    @abstractmethod
    def denoiser_network(self) -> nn.Module:
        """The network that predicts; LoRA's adapters go into it."""

    @abstractmethod
    def forward(
        self,
        sample: Tensor,  # [N, F, C, h, w], noisy latents
        sigma: float | Tensor,  # one noise level, or [N]
        condition: Condition,  # of N clips
    ) -> Tensor:  # [N, F, C, h, w]
        """The denoiser's raw output at noise level ``sigma``, in the parameterization of the model's sampler."""

    @abstractmethod
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
            ValueError: something that the model's condition needs is missing.
        """

    @abstractmethod
    def observed_condition(
        self,
        latents: Tensor,  # [B, C, h, w] of the clips' first frames, as codec.encode gives them
        instructions: Sequence[str],
    ) -> Condition:
        """The condition of clips whose first frames are given as latents, on the model's device."""

    @abstractmethod
    def sampler(self, **overrides: Any) -> EulerHybridSampler:
        """A sampler with this model's noise schedule, prediction type and guidance; ``overrides`` are its fields."""

    @abstractmethod
    def set_sampler(self, sampler: EulerHybridSampler) -> None:
        """Make a sampler's schedule, guidance and solver this model's own; they are saved with the model."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of everything that predictions depend on: weights, settings, noise schedule, precision, codec."""

    @property
    @abstractmethod
    def num_feature_layers(self) -> int:
        """Number of layers that :meth:`feature_extractor` can read."""

    @abstractmethod
    def feature_extractor(self, layers: Sequence[int], *, seed: int = 0, compiled: bool = False) -> FeatureExtractor:
        """Reads predictive features at the sampler's first noise level, for a policy.

        Args:
            layers: indices of the layers whose outputs are the features, in ascending order.
            seed: seed of the noise, which is the same for every clip.
            compiled: True runs the denoiser through ``torch.compile``; the first call of each batch size is slow.

        Raises:
            ValueError: there is no such layer, or ``layers`` is empty or not in ascending order.
        """

    @abstractmethod
    def feature_parameters(self, layers: Sequence[int]) -> Iterable[nn.Parameter]:
        """Weights that the features of these layers depend on; with LoRA those of the adapters too."""

    @abstractmethod
    def frozen_network(self, network: nn.Module) -> "VideoPredictor":
        """The same predictor around another, frozen denoiser network; all other parts are shared."""

    def predicted(self, latents: Tensor) -> Tensor:  # [B, F, C, h, w] -> [B, F - num_given_frames, C, h, w]
        """The frames that are predicted: what noise is drawn for, and what the denoiser takes and returns."""
        return latents[:, self.num_given_frames :]

    def whole(
        self,
        condition: Condition,
        predicted: Tensor,  # [B, F - num_given_frames, C, h, w], or [B, G, F - num_given_frames, C, h, w]
    ) -> Tensor:  # the same with F frames
        """Predicted frames behind those that the condition gives."""
        if not self.num_given_frames:
            return predicted
        given = (condition.image_latents * self.codec.scaling_factor).to(predicted).unsqueeze(1)
        if predicted.ndim == 6:
            given = given.unsqueeze(1).expand(-1, predicted.shape[1], -1, -1, -1, -1)
        return torch.cat([given, predicted], dim=-4)

    @property
    def device(self) -> torch.device:
        """Device of the denoiser's weights."""
        return next(self.denoiser_network.parameters()).device

    @property
    def num_parameters(self) -> int:
        """Number of the denoiser's weights."""
        return sum(parameter.numel() for parameter in self.denoiser_network.parameters())

    def features(
        self,
        first_frames: Tensor | None = None,  # [B, 3, H, W] in [0, 1]
        instructions: Sequence[str] | None = None,
        *,
        first_latents: Tensor | None = None,  # [B, C, h, w], as codec.encode gives them
        layers: Sequence[int] = (0, 1),
        seed: int = 0,
    ) -> Tensor:  # [B, F, D, h, w], in the autocast dtype
        """Predictive features for a policy from one denoiser forward; see :meth:`feature_extractor`.

        Differentiable with respect to weights that require grad; nothing is decoded. Errors are those of
        :meth:`condition` and :meth:`feature_extractor`.
        """
        condition = self.condition(instructions=instructions, first_frames=first_frames, first_latents=first_latents)
        return self.feature_extractor(layers, seed=seed)(condition)

    def denoiser(
        self,
        condition: Condition,
        *,
        guidance: bool | Callable[[float], bool] = False,
        model: Callable | None = None,
        dtype: torch.dtype | None = None,
    ) -> Denoise:
        """The callable that :class:`EulerHybridSampler` wants, for these clips.

        Args:
            condition: conditions of all B clips; the sampler's rows pick theirs.
            guidance: whether to run the unconditional half too: always, never, or where a function of the noise level
                says so (:meth:`EulerHybridSampler.guides`).
            model: callable used in place of this predictor, such as its frozen reference.
            dtype: precision of autocast for a predictor whose own is float32; latents stay as they are.
        """
        model = self if model is None else model

        def denoise(sample: Tensor, sigma: float, clip_index: Tensor | None) -> tuple[Tensor, Tensor | None]:
            rows = condition if clip_index is None else condition.index_select(clip_index)
            with contextlib.nullcontext() if dtype is None else torch.autocast(sample.device.type, dtype):
                if not (guidance(sigma) if callable(guidance) else guidance):
                    return model(sample, sigma, rows), None
                both = Condition.cat([rows.unconditional(), rows])
                uncond, cond = model(torch.cat([sample, sample]), sigma, both).chunk(2)
                return cond, uncond

        return denoise

    def frozen_reference(self) -> Reference:
        """The predictor as it is now, unchanged by later training.

        With adapters that is the model under them, run with the adapters switched off: nothing is copied. Without, it
        is a copy of the denoiser network, with the same codec and encoders.
        """
        if not lora.has_adapter(self.denoiser_network):
            return self.frozen_network(copy.deepcopy(self.denoiser_network).requires_grad_(False))

        def base(sample: Tensor, sigma: float | Tensor, condition: Condition) -> Tensor:
            with torch.no_grad(), lora.adapter_off(self.denoiser_network):
                return self(sample, sigma, condition)

        return base

    def autocast(self, device: torch.device):
        """Autocast in the predictor's ``dtype``; nothing for float32."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(device.type, self.dtype)

    def train(self, mode: bool = True) -> "VideoPredictor":
        """As ``nn.Module.train``, but frozen parts stay in eval mode, and so does dropout."""
        super().train(mode)
        for frozen in self._frozen_parts():
            frozen.eval()
        for module in self.denoiser_network.modules():
            if isinstance(module, _DropoutNd):
                module.eval()
        return self

    def _frozen_parts(self) -> list[nn.Module]:
        """Parts that no training changes."""
        return [self.codec] if isinstance(self.codec, nn.Module) else []

    @property
    def is_compiled(self) -> bool:
        """Whether the denoiser runs through ``torch.compile``."""
        return self._compiled is not None

    def compile_denoiser(self, *, backend: str | Callable[..., Any] = "inductor") -> None:
        """Run the denoiser through ``torch.compile``; see :class:`CompiledDenoiser`.

        Args:
            backend: of ``torch.compile``.
        """
        self._compiled = CompiledDenoiser(self.denoiser_network, self.device, backend)

    def run_denoiser(self, *inputs: Any, **options: Any) -> Tensor:
        """The first output of the denoiser network, compiled where :meth:`compile_denoiser` was called."""
        if self._compiled is not None:
            return self._compiled(*inputs, **options)
        return self.denoiser_network(*inputs, **options)[0]

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass: less memory, about a third more time."""
        network: Any = self.denoiser_network
        network.enable_gradient_checkpointing()

    def add_lora(
        self,
        *,
        rank: int = 16,
        alpha: float | None = None,
        target_modules: Sequence[str] = lora.DEFAULT_TARGETS,
        dropout: float = 0.0,
        base_dtype: str | torch.dtype | None = None,
    ) -> None:
        """Freeze the denoiser and train low-rank adapters, which are float32 on a base of any precision.

        Args:
            rank: rank of the adapters.
            alpha: weight of the adapters, in units of ``rank``: they count ``alpha / rank``; ``rank`` by default.
            target_modules: suffixes of the layers' names; the attention projections by default.
            dropout: dropout noted in the adapter's configuration; it is never active here.
            base_dtype: dtype that frozen weights of linear layers and convolutions are cast to, such as ``"bfloat16"``,
                to halve their memory; autocast in that dtype would cast them at every pass.

        Raises:
            ValueError: this model already has an adapter.
        """
        self._check_no_adapter()
        scale = rank if alpha is None else alpha
        self._set_adapter(lora.add_adapter(self.denoiser_network, rank, scale, target_modules, dropout), base_dtype)

    def load_adapter(self, folder: str | Path, *, trainable: bool = True) -> None:
        """Put a saved adapter on this base model.

        Raises:
            ValueError: the folder holds neither a LoRA nor a DoRA adapter, or this model already has an adapter.
        """
        self._check_no_adapter()
        self._set_adapter(lora.load_adapter(self.denoiser_network, folder, trainable), None)

    def save_adapter(self, folder: str | Path) -> None:
        """Write only the adapter, as PEFT does: ``PeftModel.from_pretrained(unet, folder)`` loads it.

        Raises:
            ValueError: this model has no adapter.
        """
        if not self._adapter:
            raise ValueError("this model has no adapter, expected add_lora or load_adapter before")
        self._adapter[0].save_pretrained(str(folder))

    def _check_no_adapter(self) -> None:
        if self._adapter:
            raise ValueError("this model already has an adapter, expected a model without")

    def _set_adapter(self, model: Any, base_dtype: str | torch.dtype | None) -> None:
        if base_dtype is not None:
            lora.cast_base(self.denoiser_network, as_dtype(base_dtype))
        self._adapter = (model,)
        self.train(self.training)
