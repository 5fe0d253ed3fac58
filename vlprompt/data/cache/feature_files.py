"""Features of images on disk: computed once for a frozen tower, shared by all runs, in files that can travel."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vlprompt.data.disk import complain, used_below, whole_file

FILE = "*.safetensors"
ABOUT = "about.json"  # next to the views: what the tower is
FEATURES, KEYS = "features", "keys"  # the tensor [N, e] of a file, and in its metadata the keys of the rows
Rows = dict[str, Float[Tensor, " e"]]  # by key


@dataclass(frozen=True)
class FeatureFiles:
    """Un-normalised features of one frozen tower by view and key, in files below `folder`, which belongs to it alone.

    A file holds what was missing of a view in one run. It appears whole, by a rename: parallel runs share the folder,
    where at worst both compute the same, and a killed one leaves it sound. Files may be deleted at any time. What
    cannot be written, or would exceed `limit` bytes below the parent folder, is not stored.
    """

    folder: Path
    limit: int
    about: Mapping[str, Any] = field(default_factory=dict, hash=False)  # what the tower is, for people

    def read(self, view: str, keys: Iterable[str]) -> Rows:
        """Those of the rows that are there."""
        wanted, rows = set(keys), Rows()
        for path in sorted((self.folder / view).glob(FILE)) if wanted else ():
            with suppress(OSError, SafetensorError, KeyError, ValueError):  # damaged: as if it were not there
                rows |= {key: row for key, row in _open(path, wanted).items() if key not in rows}
            if len(rows) == len(wanted):
                break
        return rows

    def write(self, view: str, rows: Mapping[str, Tensor]) -> bool:
        """Store rows of one view; -> whether they are stored."""
        if not rows:
            return True
        features = torch.stack([row.cpu() for row in rows.values()])
        root, name = self.folder.parent, hashlib.sha256("".join(rows).encode()).hexdigest()[:16]
        used = used_below(root, f"*/*/{FILE}")
        if used[0] + features.nbytes > self.limit:
            complain(f"the feature bank in {root} is full: raise bank.gb, or delete parts of it")
            return False
        try:
            if not (self.folder / ABOUT).exists():
                with whole_file(self.folder / ABOUT) as draft:
                    draft.write_text(json.dumps(self.about, indent=2), encoding="utf-8")
            with whole_file(self.folder / view / f"{name}{FILE[1:]}") as draft:
                save_file({FEATURES: features}, draft, {KEYS: json.dumps(list(rows))})
            used[0] += features.nbytes
        except (OSError, SafetensorError) as error:
            complain(f"the feature bank in {root} cannot be written ({error}): features are not stored")
            return False
        return True


def _open(path: Path, wanted: set[str]) -> Rows:
    """The wanted rows of one file. Raises: OSError, SafetensorError, KeyError, ValueError where it is damaged."""
    with safe_open(path, "pt") as file:
        keys = read_keys(path, file.metadata())
        if wanted.isdisjoint(keys):
            return {}
        return {key: row for key, row in zip(keys, file.get_tensor(FEATURES), strict=True) if key in wanted}


def read_keys(path: Path, metadata: Mapping[str, str] | None) -> Sequence[str]:
    """The keys of a file's rows. Raises: ValueError where it holds none."""
    keys = json.loads((metadata or {}).get(KEYS, "null"))
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError(f"{path} holds no keys")
    return keys
