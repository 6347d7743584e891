"""Instruction encoders: texts to the tokens that a predictor attends to."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import get_1d_sincos_pos_embed_from_grid
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from vampo_core.models.text.clip import import_transformers
from vampo_core.models.weight_files import weights_variant
from vampo_core.ops._checks import check_int

if TYPE_CHECKING:
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer

_WORD = re.compile(r"\w+")


class InstructionEncoder(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """A small trainable text encoder without a vocabulary file.

    A word (lower case, letters and digits) is the sum of two rows of one table, chosen by two independent hashes
    (hash embeddings, Svenstrup et al. 2017): words rarely share both. Row 0 is padding. A learned position is added
    and the sum normalized.

    Args:
        embedding_dim: width of the predictor's cross-attention (D).
        max_length: number of words kept (L); later ones are cut, missing ones padded.
        table_size: number of rows of the table.
    """

    @register_to_config
    def __init__(self, embedding_dim: int = 64, max_length: int = 16, table_size: int = 1024):
        super().__init__()
        embedding_dim = check_int("embedding_dim", embedding_dim, minimum=1)
        self.max_length = check_int("max_length", max_length, minimum=1)
        self.table_size = check_int("table_size", table_size, minimum=2)
        self.word_embedding = nn.Embedding(table_size, embedding_dim, padding_idx=0)
        self.position_embedding = nn.Parameter(0.1 * torch.randn(max_length, embedding_dim))
        self.norm = nn.LayerNorm(embedding_dim)

    def tokenize(self, texts: Sequence[str]) -> Tensor:  # [B, L, 2]
        """Two table rows per word; BLAKE2b hashes, the same on every machine."""
        tokens = torch.zeros(len(texts), self.max_length, 2, dtype=torch.long)
        for row, text in enumerate(texts):
            for column, word in enumerate(_WORD.findall(text.lower())[: self.max_length]):
                digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
                for k in range(2):
                    number = int.from_bytes(digest[4 * k : 4 * k + 4], "little")
                    tokens[row, column, k] = 1 + number % (self.table_size - 1)
        return tokens

    def forward(self, texts: Sequence[str]) -> Tensor:  # [B, L, D]
        """Embed instructions, with gradient to the table.

        Raises:
            TypeError: ``texts`` is not a sequence of strings.
        """
        check_texts(texts)
        tokens = self.tokenize(texts).to(self.position_embedding.device, non_blocking=True)
        return self.norm(self.word_embedding(tokens).sum(-2) + self.position_embedding)


class ClipTextEncoder(nn.Module):
    """Frozen CLIP text tokens in the arrangement of VPP (arXiv 2412.14803).

    Padded or cut to ``max_length`` tokens; ``last_hidden_state``, plus a sine-cosine position code if asked for,
    concatenated with itself until it is as wide as the predictor's cross-attention (512 to 1024).

    Args:
        tokenizer: CLIP's tokenizer.
        model: CLIP's text model; it is frozen.
        embedding_dim: width of the tokens (D), a multiple of the model's width.
        max_length: number of tokens (L).
        position_code: True adds the position code.
    """

    def __init__(
        self,
        tokenizer: "CLIPTokenizer",
        model: "CLIPTextModelWithProjection",
        *,
        embedding_dim: int = 1024,
        max_length: int = 20,
        position_code: bool = True,
    ):
        super().__init__()
        width = model.config.hidden_size
        if embedding_dim % width:
            raise ValueError(
                f"text encoder is {width} wide, expected a divisor of the UNet's cross_attention_dim {embedding_dim}"
            )
        self.max_length = check_int("max_length", max_length, minimum=1, maximum=model.config.max_position_embeddings)
        self.tokenizer, self.position_code, self.num_repeats = tokenizer, position_code, embedding_dim // width
        self.model = model.eval().requires_grad_(False)

    @classmethod
    def from_pretrained(cls, folder: str | Path, tokenizer_folder: str | Path | None = None, **arguments):
        """Load CLIP from a local folder; the tokenizer may lie beside it or in its own folder.

        Raises:
            ValueError: the folder holds no CLIP text model or tokenizer.
        """
        tokenizer_folder = folder if tokenizer_folder is None else tokenizer_folder
        tokenizer_files = ("vocab.json", "tokenizer.json")
        if not any((Path(tokenizer_folder) / name).is_file() for name in tokenizer_files):
            raise ValueError(f"{tokenizer_folder} holds neither of {tokenizer_files}, expected a CLIP tokenizer")
        transformers = import_transformers()
        try:
            loaded: Any = transformers.CLIPTextModelWithProjection.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                variant=weights_variant(Path(folder)),
            )
            tokenizer = transformers.CLIPTokenizer.from_pretrained(tokenizer_folder, local_files_only=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise ValueError(f"{folder} holds no CLIP text model that can be loaded: {error}") from error
        model, info = loaded
        if info["missing_keys"]:
            missing = len(info["missing_keys"])
            raise ValueError(f"{folder} holds no CLIP text model: {missing} of its weights are missing")
        return cls(tokenizer, model.float(), **arguments)

    @torch.no_grad()
    def forward(self, texts: Sequence[str]) -> Tensor:  # [B, L, D]
        """Embed instructions; no gradient.

        Raises:
            TypeError: ``texts`` is not a sequence of strings.
        """
        check_texts(texts)
        inputs = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=self.max_length, return_tensors="pt"
        ).to(self.model.device)
        states = self.model(**inputs).last_hidden_state
        if self.position_code:
            positions = torch.arange(states.shape[1], device=states.device)
            states = states + get_1d_sincos_pos_embed_from_grid(states.shape[2], positions).to(states)
        return cast(Tensor, states).repeat(1, 1, self.num_repeats)

    def save_pretrained(self, folder: str | Path, tokenizer_folder: str | Path) -> None:
        """Write the model and its tokenizer in transformers' format."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(tokenizer_folder)


def check_texts(texts: object) -> None:
    """Refuse anything but a sequence of strings.

    Raises:
        TypeError: it is none.
    """
    if isinstance(texts, str) or not isinstance(texts, Sequence) or not all(isinstance(t, str) for t in texts):
        raise TypeError(f"instructions is {texts!r}, expected a sequence of strings, one per clip")
