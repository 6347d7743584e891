"""UMT5 text tokens as Wan takes them; the encoder is loaded only for texts that were not embedded before."""

import hashlib
import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vampo_core.files import locked, publish, temporary_beside, user_cache
from vampo_core.models.text.clip import import_transformers
from vampo_core.models.text.text import check_texts
from vampo_core.models.weight_files import weights_variant
from vampo_core.progress import progress

MAX_TOKENS = 512
_HASHED_BYTES = 1 << 20


class T5TextEncoder:
    """Frozen UMT5 tokens, padded with zeros to ``max_length`` (``WanImageToVideoPipeline``).

    With a few billion weights the encoder is larger than most denoisers, and a dataset has few different instructions.
    So tokens are kept in the user's cache, and the encoder is loaded only when texts come that were never embedded; it
    embeds all of them and is let go.

    Args:
        folder: folder of the ``UMT5EncoderModel``.
        tokenizer_folder: folder of its tokenizer.
        embedding_dim: width of the tokens that the transformer expects (D).
        max_length: number of tokens (L).

    Raises:
        ValueError: a folder holds no such model or tokenizer, or the model has another width.
    """

    def __init__(
        self, folder: Path, tokenizer_folder: Path, *, embedding_dim: int, max_length: int = MAX_TOKENS
    ) -> None:
        self.folder, self.tokenizer_folder, self.max_length = folder, tokenizer_folder, max_length
        transformers = import_transformers()
        try:
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder} holds no UMT5 text encoder: {error}") from error
        if not any((tokenizer_folder / name).is_file() for name in ("tokenizer.json", "spiece.model")):
            raise ValueError(
                f"{tokenizer_folder} holds neither tokenizer.json nor spiece.model, expected T5's tokenizer"
            )
        if config.d_model != embedding_dim:
            raise ValueError(f"{folder} is {config.d_model} wide, expected the transformer's text_dim {embedding_dim}")
        weights_variant(folder)  # says so now if there are no weights
        self._fingerprint = self._hash()
        self._embedded: dict[str, Tensor] = {}  # text -> [number of tokens, D]

    def __call__(self, texts: Sequence[str]) -> Tensor:  # [B, L, D] float32, on the CPU
        """Embed instructions; no gradient.

        Raises:
            TypeError: ``texts`` is not a sequence of strings.
            ValueError: the model or its tokenizer cannot be loaded.
        """
        texts = self.prepare(texts)
        tokens = [self._embedded[text] for text in texts]
        padded = tokens[0].new_zeros(len(texts), self.max_length, tokens[0].shape[-1])
        for row, values in zip(padded, tokens, strict=True):
            row[: len(values)] = values
        return padded

    def prepare(self, texts: Sequence[str]) -> list[str]:
        """Embed texts that were never embedded, all at once; errors are those of a call.

        Returns:
            The texts as they are embedded: cleaned as Wan's pipelines clean prompts.
        """
        check_texts(texts)
        cleaned = [_cleaned(text) for text in texts]
        missing = sorted(set(cleaned) - self._embedded.keys())
        if missing:
            folder = user_cache() / f"text-{self._fingerprint}"
            files = {text: folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors" for text in missing}
            if not all(file.is_file() for file in files.values()):
                with locked(folder):  # another process may have embedded them in the meantime
                    self._embed({text: file for text, file in files.items() if not file.is_file()})
            self._embedded |= {text: load_file(file)["tokens"] for text, file in files.items()}
        return cleaned

    @torch.no_grad()
    def _embed(self, files: Mapping[str, Path]) -> None:
        if not files:
            return
        transformers: Any = import_transformers()
        variant = weights_variant(self.folder)
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(self.tokenizer_folder, local_files_only=True)
            model = transformers.UMT5EncoderModel.from_pretrained(
                self.folder, local_files_only=True, use_safetensors=True, variant=variant, dtype="auto"
            ).eval()
        except (OSError, ValueError, RuntimeError) as error:
            raise ValueError(f"{self.folder} holds no UMT5 text encoder that can be loaded: {error}") from error
        for text, file in progress(files.items(), desc="embed instructions", delay=0.5):
            inputs = tokenizer(text, truncation=True, max_length=self.max_length, return_tensors="pt")
            states = model(inputs.input_ids, inputs.attention_mask).last_hidden_state
            temporary = temporary_beside(file)
            save_file({"tokens": states[0].float().contiguous()}, temporary)
            publish(temporary, file)

    def fingerprint(self) -> str:
        """Changes with settings, tokenizer, and names, sizes and beginnings of the weight files."""
        return self._fingerprint

    def _hash(self) -> str:
        digest = hashlib.sha256(str(self.max_length).encode())
        for path in sorted([*self.folder.iterdir(), *self.tokenizer_folder.iterdir()]):
            if path.is_file():
                with path.open("rb") as file:
                    digest.update(f"{path.name}{path.stat().st_size}".encode() + file.read(_HASHED_BYTES))
        return digest.hexdigest()[:16]


def _cleaned(text: str) -> str:
    """A text without HTML entities and repeated spaces, as Wan's pipelines clean prompts."""
    return re.sub(r"\s+", " ", html.unescape(html.unescape(text))).strip()
