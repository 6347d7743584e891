"""Text encoders that are larger than most denoisers: loaded only for texts that were not embedded before."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vampo_core.files import locked, publish, temporary_beside, user_cache
from vampo_core.models.fingerprint import files_summary, fingerprint
from vampo_core.models.text.clip import import_transformers
from vampo_core.models.text.text import check_texts
from vampo_core.models.weight_files import weights_variant
from vampo_core.progress import progress

MAX_TOKENS = 512
_MOST_IN_MEMORY = 2**31
"""Bytes of tokens; other texts are read from the cache again."""


class LazyTextEncoder(ABC):
    """Frozen tokens of a large language model, padded with zeros to ``max_length``.

    With a few billion weights the encoder is larger than most denoisers, and a dataset has few different instructions.
    So tokens are kept in the user's cache, and the encoder is loaded only when texts come that were never embedded; it
    embeds all of them and is let go.

    A subclass names its model and embeds one text.

    Args:
        folder: folder of the model.
        tokenizer_folder: folder of its tokenizer.
        embedding_dim: width of the tokens that the transformer expects (D).
        max_length: number of tokens (L).

    Raises:
        ValueError: a folder holds no such model or tokenizer, or the model has another width.
    """

    model_class: str
    """Class of the model in transformers."""
    kind: str
    """What errors call the model."""
    width_setting: str
    """The transformer's name for the width of its text tokens."""
    tokenizer_files: tuple[str, ...]
    """Files of which the tokenizer's folder must hold one."""

    def __init__(
        self, folder: Path, tokenizer_folder: Path, *, embedding_dim: int, max_length: int = MAX_TOKENS
    ) -> None:
        self.folder, self.tokenizer_folder, self.max_length = folder, tokenizer_folder, max_length
        transformers = import_transformers()
        try:
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder} holds no {self.kind} text encoder: {error}") from error
        if not any((tokenizer_folder / name).is_file() for name in self.tokenizer_files):
            files = " nor ".join(self.tokenizer_files)
            raise ValueError(f"{tokenizer_folder} holds neither {files}, expected {self.kind}'s tokenizer")
        width = self.width(config)
        if width != embedding_dim:
            expected = f"{self.width_setting} {embedding_dim}"
            raise ValueError(f"{folder} is {width} wide, expected the transformer's {expected}")
        weights_variant(folder)  # says so now if there are no weights
        self._fingerprint = self._hash()
        self._embedded: dict[str, Tensor] = {}  # text -> [number of tokens, D]

    @staticmethod
    @abstractmethod
    def width(config: Any) -> int:
        """Width of the tokens (D), from the model's config."""

    @abstractmethod
    def embed(self, tokenizer: Any, model: Any, text: str) -> Tensor:  # [number of tokens, D]
        """Tokens of one text, without gradient."""

    def cleaned(self, text: str) -> str:
        """A text as the tokenizer takes it."""
        return text

    def __call__(self, texts: Sequence[str]) -> Tensor:  # [B, L, D], on the CPU
        """Embed instructions; no gradient.

        Raises:
            TypeError: ``texts`` is not a sequence of strings.
            ValueError: the model or its tokenizer cannot be loaded.
        """
        texts = self.prepare(texts)
        new = {text: load_file(self._file(text))["tokens"] for text in set(texts) - self._embedded.keys()}
        self._embedded |= new
        tokens = [self._embedded[text] for text in texts]
        self._forget(texts)
        padded = tokens[0].new_zeros(len(texts), self.max_length, tokens[0].shape[-1])
        for row, values in zip(padded, tokens, strict=True):
            row[: len(values)] = values
        return padded

    def prepare(self, texts: Sequence[str]) -> list[str]:
        """Embed texts that were never embedded, all at once; errors are those of a call.

        Returns:
            The texts as the tokenizer takes them.
        """
        check_texts(texts)
        cleaned = [self.cleaned(text) for text in texts]
        missing = [text for text in sorted(set(cleaned) - self._embedded.keys()) if not self._file(text).is_file()]
        if missing:
            with locked(self._file("").parent):  # another process may have embedded them in the meantime
                self._embed([text for text in missing if not self._file(text).is_file()])
        return cleaned

    def _file(self, text: str) -> Path:
        """Where a text's tokens are kept."""
        name = hashlib.sha256(text.encode()).hexdigest()[:32]
        return user_cache() / f"text-{self._fingerprint}" / f"{name}.safetensors"

    def _forget(self, needed: Sequence[str]) -> None:
        """Keep no more texts in memory than fit, the latest ones and those that are needed now."""
        size = sum(tokens.nbytes for tokens in self._embedded.values())
        for text in [text for text in self._embedded if text not in needed]:
            if size <= _MOST_IN_MEMORY:
                break
            size -= self._embedded.pop(text).nbytes

    @torch.no_grad()
    def _embed(self, texts: Sequence[str]) -> None:
        if not texts:
            return
        transformers: Any = import_transformers()
        model_class, variant = getattr(transformers, self.model_class), weights_variant(self.folder)
        options = {"local_files_only": True, "use_safetensors": True, "variant": variant, "dtype": "auto"}
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(self.tokenizer_folder, local_files_only=True)
            model = model_class.from_pretrained(self.folder, **options).eval()
        except (OSError, ValueError, RuntimeError) as error:
            raise ValueError(f"{self.folder} holds no {self.kind} text encoder that can be loaded: {error}") from error
        for text in progress(texts, desc="embed instructions", delay=0.5):
            file = self._file(text)
            temporary = temporary_beside(file)
            save_file({"tokens": self.embed(tokenizer, model, text).contiguous()}, temporary)
            publish(temporary, file)

    def fingerprint(self) -> str:
        """Changes with settings, tokenizer, and names, sizes and beginnings of the weight files."""
        return self._fingerprint

    def _hash(self) -> str:
        files = [*files_summary(self.folder), *files_summary(self.tokenizer_folder)]
        return fingerprint([self.kind, self.max_length, *files], {})
