"""Files of weights, and token tables that hold only part of the vocabulary."""

import hashlib
import io
import logging
import re
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from jaxtyping import Int
from torch import Tensor, nn

from vlprompt.errors import UserError
from vlprompt.towers.pickles import check_pickles

OPENAI_KEYS = ("input_resolution", "context_length", "vocab_size")
"""Entries that OpenAI's files have next to the weights."""
DERIVED = ("attn_mask",)
"""Buffers that a TorchScript archive may hold though the model makes them itself."""
OPENAI_ARCHIVES = {
    "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762": "RN50",
    "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599": "RN101",
    "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd": "RN50x4",
    "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa": "RN50x16",
    "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c": "RN50x64",
    "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af": "ViT-B-32",
    "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f": "ViT-B-16",
    "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836": "ViT-L-14",
    "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02": "ViT-L-14-336",
}
"""sha256 of the TorchScript archives that OpenAI published. Reading such an archive runs code, so no other is read."""
VIT = "patch_embed.proj.weight"
"""A name that all of timm's vision transformers have."""
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Under which training programs keep a state dict; averaged weights come first, as in timm."""
PREFIXES = ("_orig_mod.", "module.", "_orig_mod.")
"""What torch.compile and data-parallel training put in front of names, in any order."""
FETCH = "fetch it again"
STARTS = {
    b"version https://git-lfs": ("a git-lfs pointer instead of the weights", "fetch them with `git lfs pull`"),
    b"\x1f\x8b": ("a gzip archive", "unpack it"),
    b"7z\xbc\xaf": ("a 7z archive", "unpack it"),
    b"Rar!": ("a RAR archive", "unpack it"),
    b"\x93NUMPY": ("a NumPy array", "give safetensors or a state dict of torch"),
    b"\x89HDF": ("an HDF5 file", "give safetensors or a state dict of torch"),
    b"PK\x05\x06": ("an empty archive", FETCH),
}
"""What a file is by its first bytes, and what to do."""


def read_state(path: Path) -> tuple[dict[str, Tensor], bool]:
    """A state dict in float32, and whether the file is in OpenAI's format (trained with QuickGELU).

    Reads safetensors, `torch.save`d state dicts (plain, or under a name of `WRAPPERS`; never arbitrary pickles) and
    OpenAI's own TorchScript archives. No code of a file is run.

    Raises:
        UserError: a file that is something else, damaged, or would need code to be run.
    """
    try:
        loaded, archive = _read(path)
    except UserError:
        raise
    except Exception as error:  # whatever a damaged file makes three readers raise
        if asked := re.search(r"GLOBAL ([\w.<>]{1,100})", str(error)):
            raise UserError(
                f"{path} cannot be read as weights: it asks for '{asked[1]}', which would run code, and nothing of it "
                "was run; give a file of tensors alone, as torch.save(model.state_dict(), FILE) writes it"
            ) from None
        raise UserError(f"{path} cannot be read as weights ({reason_of(error)}): {FETCH}") from None
    state = loaded
    if isinstance(loaded, dict):
        state = next((inner for name in WRAPPERS if (inner := loaded.get(name)) and isinstance(inner, dict)), loaded)
    if not isinstance(state, dict) or not all(isinstance(t, Tensor | int) for t in state.values()):
        names = f" but {', '.join(repr(str(name)) for name in list(state)[:4])}" if isinstance(state, dict) else ""
        raise UserError(f"{path} holds no state dict{names}: give a file of tensors by name")
    openai = archive or all(key in state for key in OPENAI_KEYS)
    tensors = {bare(str(name)): tensor for name, tensor in state.items() if name not in OPENAI_KEYS + DERIVED}
    if wrong := [name for name, tensor in tensors.items() if not is_dense(tensor)]:
        raise UserError(f"'{wrong[0]}' in {path} is no dense tensor: give a file of plain tensors by name")
    tensors = {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
    check_finite(tensors, str(path))  # as they are used: a double may have no float
    return tensors, openai


def bare(name: str) -> str:
    """A tensor's name without what wrappers of the model put in front."""
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


def is_archive_of_numpy(path: Path) -> bool:
    """Whether a file is what `numpy.savez` writes, whatever its name."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return all(name.endswith(".npy") for name in archive.namelist())


def is_dense(tensor: Any) -> bool:
    """Whether it is a tensor whose numbers are all there: not sparse, quantized, or a view that repeats some."""
    if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def check_finite(tensors: dict[str, Tensor], weights: str) -> None:
    """Raises: UserError that names the first tensor with a NaN or an infinite value."""
    wrong = next((name for name, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()), None)
    if wrong is not None:
        raise UserError(f"the weights {weights} hold values that are NaN or infinite ('{wrong}'): get other ones")


def _read(path: Path) -> tuple[Any, bool]:
    """What a file holds, and whether it is an archive of OpenAI's."""
    with path.open("rb") as file:
        start = file.read(512)
        if what := name_start(start):
            raise UserError(f"{path} is {what[0]}: {what[1]}")
        if start.startswith(b"PK\x03\x04") and not zipfile.is_zipfile(file):
            raise UserError(f"{path} cannot be read as weights (it is cut off): {FETCH}")
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                names = [Path(name).name for name in archive.namelist()]
                unpacked = sum(entry.file_size for entry in archive.infolist())
            if is_archive_of_numpy(path):
                raise UserError(f"{path} is a NumPy archive: give safetensors or a state dict of torch")
            if "data.pkl" not in names:
                raise UserError(f"{path} is a zip archive without weights of torch: unpack it")
            if "constants.pkl" in names:
                return read_archive(path), True
            if unpacked > path.stat().st_size:  # would grow in memory
                raise UserError(f"{path} is a compressed archive, and torch writes none: {FETCH}")
        elif start[8:9] == b"{" or path.suffix == ".safetensors":
            return safetensors.torch.load_file(path), False
        check_pickles(path)
        file.seek(0)  # not the path, by whose end torch would choose a reader
        with torch.serialization.safe_globals([Namespace]):  # the arguments of a training program: names and values
            return torch.load(file, map_location="cpu", weights_only=True), False


def reason_of(error: Exception) -> str:
    """An error of a reader of files in a few words, without its advice to run what is in them."""
    reason = " ".join(str(error).split())
    if not reason or "weights_only" in reason:
        return "it is damaged, cut off, or not written by torch.save"
    return reason[:200]


def name_start(start: bytes) -> tuple[str, str] | None:
    """What a file is that begins so, and what to do; None where it may be weights."""
    for known, what in STARTS.items():
        if start.startswith(known):
            return what
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not text:
        return ("an empty file" if not start else "a file of white space"), FETCH
    if text.startswith(b"<"):
        return "a web page instead of the weights", "fetch them from the address of the file itself"
    if any(byte < 9 or 13 < byte < 32 for byte in start):
        return None
    if text.startswith((b"{", b"[")):
        return "JSON, perhaps a server's message, instead of the weights", FETCH
    return "a text file instead of the weights", FETCH


def read_archive(path: Path) -> dict[str, Tensor]:
    """The state dict of a TorchScript archive. Raises: UserError unless it is one that OpenAI published."""
    content = path.read_bytes()  # what is checked is what is loaded
    if hashlib.sha256(content).hexdigest() not in OPENAI_ARCHIVES:
        raise UserError(
            f"{path} is a TorchScript archive, which could run code when it is read, and none of those that OpenAI "
            "published: get its weights as safetensors, or as a state dict"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated, but these files stay as they are
        state: dict[str, Tensor] = torch.jit.load(io.BytesIO(content), map_location="cpu").state_dict()
    return state


def fit(net: nn.Module, state: Mapping[str, Tensor], weights: str, model: str, *, do: str = "") -> None:
    """Load a state dict strictly. `do`: what mends it where it does not fit, if that is known.

    Raises:
        UserError: naming the first tensors that are missing, unexpected or of another shape or type.
    """
    expected = net.state_dict()
    wrong = [f"'{k}' is {list(state[k].shape)}, needed {list(expected[k].shape)}" for k in expected
             if k in state and state[k].shape != expected[k].shape]  # fmt: skip
    wrong += [f"'{k}' is of type {state[k].dtype}, needed {expected[k].dtype}" for k in expected
              if k in state and state[k].is_floating_point() != expected[k].is_floating_point()]  # fmt: skip
    wrong += [f"'{k}' is missing" for k in expected if k not in state]
    wrong += [f"'{k}' is not part of the model" for k in state if k not in expected]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        if not do and VIT in state and VIT not in expected:
            do = "they have timm's names: use backbone=timm_vit with backbone.model=NAME"
        do = do or "choose the architecture that they were made with (backbone.model)"
        raise UserError(f"the weights {weights} do not fit {model}: {'; '.join(wrong[:3])}{more}; {do}")
    if "logit_scale" in state and not state["logit_scale"].exp().isfinite().all():
        raise UserError(f"the weights {weights} have a logit_scale whose exponential is infinite: get other ones")
    net.load_state_dict(state)


def fetch(get: Callable[[], Any], what: str) -> Any:
    """What `get` gets from the network. Raises: UserError for whatever keeps it from that."""
    hub = logging.getLogger("huggingface_hub")  # which tells of every attempt
    level = hub.level
    hub.setLevel(logging.ERROR)
    try:
        return get()
    except Exception as error:  # the hub's client raises dozens of kinds, all meaning the same here
        reason = reason_of(error) if str(error).strip() else type(error).__name__
        raise UserError(
            f"the weights {what} could not be fetched ({reason}): connect this machine to the network, or give a "
            "file with backbone.weights=PATH"
        ) from error
    finally:
        hub.setLevel(level)


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

    def vocabulary(self, n_rows: int) -> dict[int, str]:
        """The tokens that have one of the `n_rows` embeddings, by id, but for the special ones.

        A token that is no whole word shows where the word goes on: pho+ of CLIP's tokenizer, +to of others.
        """
        inner: Any = getattr(self.tokenizer, "tokenizer", self.tokenizer)
        special = frozenset(inner.all_special_ids)
        ids = [i for i in sorted(self.known or range(n_rows)) if i < n_rows and i not in special]
        if hasattr(inner, "byte_decoder"):  # open_clip's own
            return {i: _spelt(inner.decoder[i], inner.byte_decoder) for i in ids if i in inner.decoder}
        ids = [i for i in ids if i < len(inner)]
        tokens = zip(ids, inner.convert_ids_to_tokens(ids), strict=True)
        return {i: token[1:] if token[0] == "\u2581" else f"+{token}" for i, token in tokens if token}

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


def _spelt(token: str, bytes_of: Mapping[str, int]) -> str:
    """A token of CLIP's byte pairs as text; one that does not end a word ends with a plus."""
    body = token.removesuffix("</w>")
    text = bytes(bytes_of[c] for c in body if c in bytes_of).decode("utf-8", "replace")
    return text if body != token else f"{text}+"
