"""A feature bank as one file: features of the images that some runs need, and the data sets that they belong to."""

import json
import re
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vlprompt.data.cache.feature_files import ABOUT, FEATURES, FILE, KEYS, FeatureFiles, Rows, read_keys
from vlprompt.data.dataset import PARTS
from vlprompt.data.disk import temporary_folder, whole_file, writing
from vlprompt.data.sources import banked
from vlprompt.errors import UserError

MANIFEST, DATASETS = "bank.json", "datasets"
FEATURE_MEMBER = re.compile(r"features/([a-z0-9-]+)\.safetensors")
DATASET_MEMBER = re.compile(r"datasets/([0-9a-f]{8,64})\.json")


class Manifest(BaseModel):
    """What a packed bank holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    tower: str  # the name of its folder
    about: dict[str, Any]  # the model, its precision, how images were made
    command: str  # a run that reads it


def pack(
    path: Path, manifest: Manifest, contents: Mapping[str, banked.Contents], features: Mapping[str, Rows]
) -> tuple[int, int]:
    """Write a bank: data sets by identity, features by view; -> (rows, bytes). Raises: UserError."""
    try:
        with (
            temporary_folder() as folder,
            whole_file(path) as draft,
            zipfile.ZipFile(draft, "w") as archive,
        ):
            archive.writestr(MANIFEST, manifest.model_dump_json(indent=2))
            for identity, content in contents.items():
                archive.writestr(f"{DATASETS}/{identity}.json", content.model_dump_json())
            for view, rows in features.items():
                member = folder / "rows"
                save_file({FEATURES: torch.stack(list(rows.values())).cpu()}, member, {KEYS: json.dumps(list(rows))})
                archive.write(member, f"features/{view}{FILE[1:]}")
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {path} ({error}): choose another folder, or free space") from None
    return sum(map(len, features.values())), path.stat().st_size


def unpack(path: Path, root: Path, *, limit: int) -> tuple[Manifest, int]:
    """Put a packed bank into the bank below `root`; -> (what it was made of, rows).

    Nothing is taken from a file that is not wholly sound. Raises: UserError.
    """
    try:
        with zipfile.ZipFile(path) as archive, temporary_folder() as folder:
            if damaged := archive.testzip():
                raise ValueError(f"{damaged} is damaged")
            manifest = Manifest.model_validate_json(archive.read(MANIFEST))
            if not re.fullmatch(r"[0-9a-f]{16}", manifest.tower):
                raise ValueError("its tower has no name")
            features: dict[str, Rows] = {}
            contents: dict[str, banked.Contents] = {}
            for name in archive.namelist():
                if match := FEATURE_MEMBER.fullmatch(name):
                    features[match[1]] = _read_rows(Path(archive.extract(name, folder)))
                elif match := DATASET_MEMBER.fullmatch(name):
                    contents[match[1]] = banked.Contents.model_validate_json(archive.read(name))
                elif name != MANIFEST:
                    raise ValueError(f"{name} does not belong in it")
    except (OSError, KeyError, ValueError, ValidationError, zipfile.BadZipFile, SafetensorError, EOFError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is no packed feature bank ({reason}): get it again") from None
    files = FeatureFiles(root / manifest.tower, limit, manifest.about)
    for view, rows in features.items():
        known = files.read(view, rows)
        if not files.write(view, {key: row for key, row in rows.items() if key not in known}):
            raise UserError(f"not all features could be stored in {root}: free space there, and unpack {path} again")
    with writing(f"the data sets of {path} in {root}", "and unpack it again"):
        for identity, content in contents.items():
            path_of_dataset = root / DATASETS / f"{identity}.json"
            with whole_file(path_of_dataset) as draft:
                draft.write_text(_merged(path_of_dataset, content).model_dump_json(), encoding="utf-8")
    return manifest, sum(map(len, features.values()))


def _read_rows(path: Path) -> Rows:
    with safe_open(path, "pt") as file:
        rows = dict(zip(read_keys(path, file.metadata()), file.get_tensor(FEATURES), strict=True))
    path.unlink()
    return rows


def _merged(path: Path, content: banked.Contents) -> banked.Contents:
    """A data set's description with the keys of one that was unpacked before."""
    if not path.is_file():
        return content
    before = banked.read(path)
    known = {image: key for part in PARTS for image, _, key in getattr(before, part) if key}
    filled: dict[str, Any] = {
        part: [(image, label, key or known.get(image, "")) for image, label, key in getattr(content, part)]
        for part in PARTS
    }
    return content.model_copy(update=filled)


def towers(root: Path) -> list[dict[str, Any]]:
    """What is in the bank below `root`: of each tower what it is, its views, rows and bytes; no damaged files."""
    known = []
    for folder in sorted(path.parent for path in root.glob(f"*/{ABOUT}")):
        files = list(folder.glob(f"*/{FILE}"))
        rows = 0
        for path in files:
            with suppress(OSError, SafetensorError), safe_open(path, "pt") as file:
                rows += file.get_slice(FEATURES).get_shape()[0]
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        size = sum(path.stat().st_size for path in files)
        known.append({**about, "views": len({path.parent for path in files}), "rows": rows, "bytes": size})
    return known
