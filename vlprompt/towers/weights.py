"""Files of weights, and token tables that hold only part of the vocabulary."""

import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from jaxtyping import Int
from torch import Tensor

from vlprompt.errors import UserError
from vlprompt.towers.pickles import check_pickles

OPENAI_KEYS = ("input_resolution", "context_length", "vocab_size")
"""Entries that OpenAI's files have next to the weights."""
DERIVED = ("attn_mask",)
"""Buffers that a TorchScript archive may hold though the model makes them itself."""


def read_state(path: Path) -> tuple[dict[str, Tensor], bool]:
    """A state dict in float32, and whether the file is in OpenAI's format (trained with QuickGELU).

    Reads safetensors, `torch.save`d state dicts (plain, or under `state_dict`; never arbitrary pickles) and OpenAI's
    TorchScript archives.

    Raises:
        UserError: an unreadable file.
    """
    try:
        loaded, archive = _read(path), False
        if isinstance(loaded, torch.jit.ScriptModule):
            loaded, archive = loaded.state_dict(), True
    except UserError:
        raise
    except Exception as error:  # whatever a damaged file makes three readers raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path} cannot be read as weights ({reason[:200]}): fetch it again") from None
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(state, dict) or not all(isinstance(t, Tensor | int) for t in state.values()):
        raise UserError(f"{path} holds no state dict: give a file of tensors by name")
    openai = archive or all(key in state for key in OPENAI_KEYS)
    tensors = {k.removeprefix("module."): t for k, t in state.items() if k not in OPENAI_KEYS + DERIVED}
    return {k: t.float() if t.is_floating_point() else t for k, t in tensors.items()}, openai


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(Path(name).name == "constants.pkl" for name in archive.namelist()):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", FutureWarning)  # deprecated, but these files stay as they are
                    return torch.jit.load(path, map_location="cpu")
    check_pickles(path)
    return torch.load(path, map_location="cpu", weights_only=True)


class WordTable:
    """A CLIP tokenizer that refuses what the text tower cannot take.

    `ids`: the token ids that have an embedding (None: all of them).
    """

    def __init__(self, tokenizer: Any, ids: Int[Tensor, " n"] | None = None) -> None:
        self.tokenizer = tokenizer
        self.known = None if ids is None else frozenset(ids.tolist())

    def count(self, text: str) -> int:
        """Tokens of a bare text, without start and end tokens."""
        return len(self._encode(text))

    def _encode(self, text: str) -> list[int]:
        if hasattr(self.tokenizer, "encode"):
            return self.tokenizer.encode(text)
        row = self.tokenizer([text])[0]
        return row[row != getattr(self.tokenizer, "pad_token_id", 0)].tolist()

    def tokenize(self, texts: list[str]) -> Int[Tensor, "C L"]:
        """Padded token ids.

        Raises:
            UserError: a text that is too long, or a word without an embedding.
        """
        ids = self.tokenizer(texts)
        limit = ids.shape[1]
        for text in texts if hasattr(self.tokenizer, "encode") else ():
            tokens = self._encode(text)
            if len(tokens) + 2 > limit:
                raise UserError(f"the text '{text[:60]}...' has {len(tokens)} tokens, the text tower takes {limit - 2}")
            if self.known is not None and not self.known.issuperset(tokens):
                words = re.findall(r"[^\W_]+", text)
                unknown = [word for word in words if not self.known.issuperset(self._encode(word))]
                raise UserError(
                    f"this small backbone does not know the word '{(unknown or [text])[0]}': choose class names, "
                    "templates and contexts from its own world, or another backbone (backbone=vit_b16)"
                )
        return ids
