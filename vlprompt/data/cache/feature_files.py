"""Features of images on disk: computed once for a frozen tower, shared by all runs, in files that can travel."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from vlprompt.data.cache.budget import Budget
from vlprompt.data.cache.checked import Damaged, checksum, discard, sealed
from vlprompt.data.disk import complain, whole_file

FILE = "*.safetensors"
ABOUT = "about.json"  # next to the views: what the tower is
FEATURES, KEYS = "features", "keys"  # the tensor [N, e] of a file, and in its metadata the keys of the rows
CHECKSUMS = "checksums"  # in the metadata: of the keys, and of the features
UNREADABLE = (OSError, SafetensorError, LookupError, ValueError)  # Damaged is a ValueError
Rows = dict[str, Float[Tensor, " e"]]  # by key


@dataclass(frozen=True)
class FeatureFiles:
    """Un-normalised features of one frozen tower by view and key, in files below `folder`, which belongs to it alone.

    A file holds what was missing of a view in one run, with checksums that are verified when it is first read; a
    damaged one, or one of another view or tower, is deleted with a warning. It appears whole, by a rename: parallel
    runs share the folder, where at worst both compute the same, and a killed one leaves it sound. Files may be deleted
    at any time. What cannot be written, or would exceed `limit` bytes below the parent folder, is not stored.
    """

    folder: Path
    limit: int
    about: Mapping[str, Any] = field(default_factory=dict, hash=False)  # what the tower is, for people

    def read(self, view: str, keys: Iterable[str]) -> Rows:
        """Those of the rows that are there and sound."""
        wanted, rows = set(keys), Rows()
        for path in sorted((self.folder / view).glob(FILE)) if wanted else ():
            try:
                rows |= {key: row for key, row in read_rows(path, wanted) if key not in rows}
            except FileNotFoundError:  # just deleted
                continue
            except OSError as error:
                complain(f"{path} cannot be read ({error.strerror}): its features are computed again")
            except UNREADABLE:
                discard(path, "its features are computed again")
            if len(rows) == len(wanted):
                break
        return rows

    def write(self, view: str, rows: Mapping[str, Tensor], *, lasting: bool = False) -> bool:
        """Store rows of one view, `lasting` where they cannot be computed again; -> whether they are stored."""
        if not rows:
            return True
        features = torch.stack([row.cpu() for row in rows.values()])
        root, name = self.folder.parent, hashlib.sha256("".join(rows).encode()).hexdigest()[:16]
        path = self.folder / view / f"{name}{FILE[1:]}"
        content = save({FEATURES: features}, metadata_of(self.folder.name, view, rows, features))
        budget = Budget(root, self.limit)
        try:
            self._describe(budget)
            with budget.room_for(path, len(content)) as fits:
                if not fits:
                    complain(f"the feature bank in {root} is full: raise bank.gb, or delete parts of it")
                    return False
                with whole_file(path, lasting=lasting) as draft:
                    draft.write_bytes(content)  # safetensors' own would be for this user alone
        except (OSError, NotImplementedError) as error:
            why = getattr(error, "strerror", None) or error
            complain(f"the feature bank in {root} cannot be written ({why}): features are not stored")
            return False
        return True

    def _describe(self, budget: Budget) -> None:
        """Have a sound description of the tower next to the views, where there is room for it."""
        path, text = self.folder / ABOUT, sealed(dict(self.about))
        with suppress(OSError, UnicodeDecodeError):
            if path.read_text(encoding="utf-8") == text:
                return
        with budget.room_for(path, len(text.encode())) as fits:
            if fits:
                with whole_file(path, lasting=False) as draft:
                    draft.write_text(text, encoding="utf-8")


def metadata_of(tower: str, view: str, keys: Iterable[str], features: Float[Tensor, "N e"]) -> dict[str, str]:
    """What stands next to the features in a file of a view."""
    text = json.dumps(list(keys))
    return {KEYS: text, CHECKSUMS: f"{_checksum_of_keys(tower, view, text)} {_checksum_of(features)}"}


def read_rows(path: Path, wanted: set[str] | None = None) -> Iterator[tuple[str, Float[Tensor, " e"]]]:
    """The wanted rows of one file, or all, by key; the checksum of the features is verified once in a process.

    Raises: Damaged; what is in UNREADABLE.
    """
    status = path.stat()
    with safe_open(path, "pt") as file:
        keys, expected = check_keys(path.parent.parent.name, path.parent.name, file.metadata())
        chosen = [i for i, key in enumerate(keys) if wanted is None or key in wanted]
        if chosen:
            features: Tensor = file.get_tensor(FEATURES)
            version = (str(path), status.st_ino, status.st_size, status.st_mtime_ns)
            if version not in _verified:
                if features.ndim != 2 or len(features) != len(keys) or _checksum_of(features) != expected:
                    raise Damaged(f"{path} has another checksum")
                _verified.add(version)
            # copied: until then they are the file itself, which others may delete or damage
            yield from zip((keys[i] for i in chosen), features[torch.tensor(chosen)], strict=True)


_verified: set[tuple[str, int, int, int]] = set()  # files: path, inode, bytes, time of the last change


def check_keys(tower: str, view: str, metadata: Mapping[str, str] | None) -> tuple[Sequence[str], str]:
    """The keys of a file's rows, and the checksum that the features should have.

    Raises: Damaged where they are not those of this tower and view.
    """
    text, checksums = ((metadata or {}).get(name, "") for name in (KEYS, CHECKSUMS))
    of_keys, _, of_features = checksums.partition(" ")
    if of_keys != _checksum_of_keys(tower, view, text):
        raise Damaged("its keys have another checksum")
    keys = json.loads(text)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):  # a stranger's
        raise Damaged("it holds no keys")
    return keys, of_features


def _checksum_of_keys(tower: str, view: str, keys: str) -> str:
    return checksum(tower.encode(), view.encode(), keys.encode())


def _checksum_of(features: Tensor) -> str:
    values = features.contiguous().flatten().view(torch.uint8).numpy()
    return checksum(f"{features.dtype} {list(features.shape)}".encode(), values.data)
