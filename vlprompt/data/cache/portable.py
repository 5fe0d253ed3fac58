"""A feature bank as one file: features of the images that some runs need, and the data sets that they belong to."""

import hashlib
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save

from vlprompt.data.cache.checked import unsealed
from vlprompt.data.cache.feature_files import (  # fmt: skip
    ABOUT,
    FEATURES,
    FILE,
    UNREADABLE,
    FeatureFiles,
    Rows,
    check_keys,
    metadata_of,
    read_rows,
)
from vlprompt.data.dataset import PARTS
from vlprompt.data.disk import check_space, whole_file, writing
from vlprompt.data.download.members import DAMAGED
from vlprompt.data.sources import banked
from vlprompt.data.sources.banked import DATASETS
from vlprompt.errors import UserError

MANIFEST = "bank.json"
TOWER = re.compile(r"[0-9a-f]{16}")
VIEW = re.compile(r"crop|seed[0-9]{1,20}(-[0-9a-f]{8})?-view[0-9]{4,9}")
FEATURE_MEMBER = re.compile(rf"features/({VIEW.pattern})\.safetensors")
DATASET_MEMBER = re.compile(r"datasets/([0-9a-f]{8,64})\.json")
LONGEST = 16 << 20  # bytes of a manifest
MOST_ABOUT = 1 << 16  # bytes of a tower's description
ENCRYPTED = 0x41  # bits of a member's flags


class About(BaseModel):
    """What a tower is, for people."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(max_length=300)
    precision: Literal["fp32", "tf32", "bf16", "fp16"]
    size: Annotated[int, Field(ge=0, lt=2**31)] | None = None  # of its images
    mean: Annotated[list[float], Field(max_length=4)] | None = None
    std: Annotated[list[float], Field(max_length=4)] | None = None
    interpolation: Literal["bicubic", "bilinear"] | None = None
    resize: Literal["shortest", "squash"] | None = None
    crop_pct: Annotated[float, Field(gt=0, le=1)] | None = None  # None: 1, as earlier versions wrote it


class Manifest(BaseModel):
    """What a packed bank holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[2] = 2
    tower: str = Field(pattern=f"^{TOWER.pattern}$")  # the name of its folder
    about: About
    settings: Annotated[
        dict[str, str], Field(max_length=100)
    ] = {}  # of the runs that it was packed for: method, dataset, ...
    n_others: Annotated[int, Field(ge=0, le=1000)] = 0  # further settings of these runs, which are not passed on
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**63)]], Field(max_length=1000)] = []
    members: dict[str, Annotated[str, Field(pattern="^[0-9a-f]{64}$")]] = {}  # sha256 by name


def pack(
    path: Path, manifest: Manifest, contents: Mapping[str, banked.Contents], features: Mapping[str, Rows]
) -> tuple[int, int]:
    """Write a bank: data sets by identity, features by view; -> (rows, bytes). Raises: UserError."""
    members = dict(manifest.members)
    try:
        with whole_file(path) as draft, zipfile.ZipFile(draft, "w") as archive:

            def add(name: str, content: bytes) -> None:
                archive.writestr(name, content)
                members[name] = hashlib.sha256(content).hexdigest()

            for identity, content in contents.items():
                add(f"{DATASETS}/{identity}.json", content.model_dump_json().encode())
            for view, rows in features.items():
                stacked = torch.stack(list(rows.values())).cpu()
                metadata = metadata_of(manifest.tower, view, rows, stacked)
                add(f"features/{view}{FILE[1:]}", save({FEATURES: stacked}, metadata))
            archive.writestr(MANIFEST, manifest.model_copy(update={"members": members}).model_dump_json(indent=2))
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {path} ({error}): choose another folder, or free space") from None
    return sum(map(len, features.values())), path.stat().st_size


def unpack(path: Path, root: Path, *, limit: int) -> tuple[Manifest, int]:
    """Put a packed bank into the bank below `root`; -> (what it was made of, rows).

    Nothing is taken from a file that is not wholly sound, and nothing that is here is replaced. It is read in place:
    its members are not compressed, so that it never grows. Raises: UserError.
    """
    with opened(path) as (archive, manifest):
        views = {match[1]: name for name in manifest.members if (match := FEATURE_MEMBER.fullmatch(name))}
        n_rows = sum(len(features_of(archive, manifest, view, name)) for view, name in views.items())
        texts = {}
        for name in manifest.members:
            if match := DATASET_MEMBER.fullmatch(name):
                content = banked.Contents.model_validate_json(content_of(archive, manifest, name))
                described = root / DATASETS / f"{match[1]}.json"
                texts[described] = banked.text_of(_merged(described, content))
    with writing(f"the features of {path} in {root}", "and unpack it again"):
        root.mkdir(parents=True, exist_ok=True)
        check_space(root, path.stat().st_size, f"unpacking {path}")
        files = FeatureFiles(root / manifest.tower, limit, manifest.about.model_dump(exclude_none=True))
        with opened(path) as (archive, _):
            for view, name in views.items():
                rows = features_of(archive, manifest, view, name)
                new = rows.keys() - files.read(view, rows).keys()
                if not files.write(view, {key: row for key, row in rows.items() if key in new}, lasting=True):
                    raise UserError(
                        f"not all features could be stored in {root}: free space there, and unpack {path} again"
                    )
        for described, text in texts.items():
            with whole_file(described) as draft:
                draft.write_text(text, encoding="utf-8")
    return manifest, n_rows


@contextmanager
def opened(path: Path) -> Iterator[tuple[zipfile.ZipFile, Manifest]]:
    """A packed bank that holds what its manifest names and nothing else. Raises: UserError, also while it is read."""
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
            for info in infos:
                name = info.orig_filename
                if not (name == MANIFEST or FEATURE_MEMBER.fullmatch(name) or DATASET_MEMBER.fullmatch(name)):
                    raise ValueError(f"{name[:100]!r} does not belong in it")
                if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & ENCRYPTED:
                    raise ValueError(f"{name} is compressed or encrypted, which no packed bank is")
            if len({info.filename for info in infos}) < len(infos):
                raise ValueError("it has two members of one name")
            if sum(info.file_size for info in infos) > path.stat().st_size:
                raise ValueError("its members are larger than itself")
            manifest = _manifest(archive)
            if missing := {info.filename for info in infos} ^ {*manifest.members, MANIFEST}:
                raise ValueError(f"its list of members and what it holds differ in {sorted(missing)[0][:100]!r}")
            yield archive, manifest
    except UserError:
        raise
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))[:100]
        raise _refused(path, f"{where}: {first['msg']}" if where else first["msg"]) from None
    except (*DAMAGED, LookupError, SafetensorError) as error:
        raise _refused(path, error) from None


def _refused(path: Path, reason: object) -> UserError:
    return UserError(f"{path} is no packed feature bank ({' '.join(str(reason).split())[:200]}): get it again")


def _manifest(archive: zipfile.ZipFile) -> Manifest:
    if archive.getinfo(MANIFEST).file_size > LONGEST:
        raise ValueError(f"{MANIFEST} has more than {LONGEST} bytes")
    read = json.loads(archive.read(MANIFEST))
    if isinstance(read, dict) and read.get("format") == 1:
        raise ValueError("it is of an earlier version, which wrote no hashes")
    return Manifest.model_validate(read)


def content_of(archive: zipfile.ZipFile, manifest: Manifest, name: str) -> bytes:
    """One member. Raises: ValueError where it is not the one that was packed."""
    content = archive.read(name)
    if hashlib.sha256(content).hexdigest() != manifest.members[name]:
        raise ValueError(f"{name} has another sha256 than its list of members says")
    return content


def features_of(archive: zipfile.ZipFile, manifest: Manifest, view: str, name: str) -> Rows:
    """The rows of one member. Raises: ValueError, LookupError, SafetensorError where it is damaged or holds others."""
    content = content_of(archive, manifest, name)
    features = load(content)[FEATURES]
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length]).get("__metadata__")
    keys, _ = check_keys(manifest.tower, view, metadata)
    if features.ndim != 2 or len(features) != len(keys):
        raise ValueError(f"{name} has no row for each of its keys")
    if not features.is_floating_point() or not features.isfinite().all():
        raise ValueError(f"{name} holds no features of images")
    return dict(zip(keys, features, strict=True))


def _merged(path: Path, content: banked.Contents) -> banked.Contents:
    """A data set's description with the keys of one that was unpacked before.

    Raises: UserError where that one has other images or labels.
    """
    try:
        before = banked.read(path)
    except UserError:  # none, or a damaged one
        return content
    if _without_keys(content) != _without_keys(before):
        raise UserError(
            f"the data set {content.name} in this bank has other images, labels or classes than the one that was "
            f"unpacked before: delete {path} to take the new one"
        )
    known = {image: key for part in PARTS for image, _, key in getattr(before, part) if key}
    filled: dict[str, Any] = {
        part: [(image, label, key or known.get(image, "")) for image, label, key in getattr(content, part)]
        for part in PARTS
    }
    return content.model_copy(update=filled)


def _without_keys(content: banked.Contents) -> tuple[object, ...]:
    images = [[row[:2] for row in getattr(content, part)] for part in PARTS]
    return content.name, content.classes, content.rows, images


def towers(root: Path) -> tuple[list[dict[str, Any]], list[Path]]:
    """What is in the bank below `root`: of each tower what it is, its views, rows and bytes; and what is damaged there,
    or foreign."""
    known: list[dict[str, Any]] = []
    refused: list[Path] = []
    for folder in sorted(path for path in root.glob("*") if not path.name.startswith(".")):
        if folder.name == DATASETS:
            refused += [path for path in sorted(folder.glob("*")) if not _is_dataset(path)]
        elif not folder.is_dir() or not TOWER.fullmatch(folder.name):
            refused.append(folder)
        else:
            files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".")]
            about = _about(folder / ABOUT)
            rows = {path: _count_rows(path, root) for path in files if path.name != ABOUT}
            refused += [path for path, n in rows.items() if n is None] + ([] if about else [folder / ABOUT])
            sound = {path: n for path, n in rows.items() if n is not None}
            shown = about.model_dump() if about else {"model": "?", "precision": "?", "size": None}
            size, views = sum(path.stat().st_size for path in sound), {path.parent for path in sound}
            known.append({**shown, "views": len(views), "rows": sum(sound.values()), "bytes": size})
    return known, refused


def _about(path: Path) -> About | None:
    try:
        return About.model_validate(unsealed(path, most=MOST_ABOUT))
    except (OSError, ValueError):
        return None


def _is_dataset(path: Path) -> bool:
    try:
        return bool(path.name.startswith(".") or (path.suffix == ".json" and banked.read(path)))
    except UserError:
        return False


def _count_rows(path: Path, root: Path) -> int | None:
    """Rows of a sound file of features; None for any other."""
    _, *between, _ = path.relative_to(root).parts
    if path.suffix != FILE[1:] or len(between) != 1 or not VIEW.fullmatch(between[0]):
        return None
    try:
        return sum(1 for _ in read_rows(path))
    except UNREADABLE:
        return None
