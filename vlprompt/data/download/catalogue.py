"""What is known about each data set, from `conf/dataset/*.yaml`: where to get it, licence, counts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from vlprompt.errors import UserError, unknown
from vlprompt.textfiles import absolute

CHECKSUM = "^(sha256:[0-9a-fA-F]{64}|md5:[0-9a-fA-F]{32})$"
State = Literal["present", "partial", "missing", "built in"]
OR = "|"  # between paths of which one is enough


class Mirror(BaseModel):
    """An address that offers a part of a data set."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str  # https://, hf://models/OWNER/NAME@REVISION/FILE, gdrive:ID
    checksum: str | None = Field(None, pattern=CHECKSUM)  # where one is published
    size: int | None = None  # about so many bytes: a quarter more are taken
    members: dict[str, str] | None = None  # of an archive: what goes where below the data set's folder


class Counts(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    classes: int
    train: int = 0
    val: int = 0
    test: int


class About(BaseModel):
    """The facts about a data set that a run does not need.

    `parts` are the files and folders that make it whole, each with its mirrors, the first to be tried first; without
    mirrors it cannot be fetched, and `manual` says what to do. `hashes` are of a text's content, not of its bytes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str | None = None  # as papers' tables have it
    family: str | None = None
    title: str
    home: str
    licence: str
    citation: str
    counts: Counts
    parts: dict[str, list[Mirror]] = Field(default_factory=dict)
    hashes: dict[str, str] = Field(default_factory=dict)
    manual: str | None = None

    def missing(self, base: Path) -> list[str]:
        """The parts that are not below the data set's folder `base`."""
        return [part for part in self.parts if not any((base / path).exists() for path in part.split(OR))]

    def download_size(self, parts: Sequence[str]) -> int | None:
        """About how many bytes these parts take to fetch; None where a size is not published."""
        fetched = {mirrors[0].url: mirrors[0].size for part in parts if (mirrors := self.parts[part])}
        sizes = [size for size in fetched.values() if size is not None]
        return sum(sizes) if len(sizes) == len(fetched) else None


@dataclass(frozen=True)
class Entry:
    """A data set as its configuration has it."""

    name: str
    source: Mapping[str, Any]
    about: About | None

    def base(self, root: Path) -> Path:
        """Its folder below the data root."""
        return absolute(root / self.source.get("folder", ""))

    def state(self, root: Path) -> State:
        if self.about is None or not self.about.parts:
            return "built in"
        n_missing = len(self.about.missing(self.base(root)))
        if not n_missing:
            return "present"
        return "missing" if n_missing == len(self.about.parts) else "partial"


def read_catalogue(folders: Sequence[Path]) -> dict[str, Entry]:
    """The data sets of the configuration folders, by name."""
    return {entry.name: entry for folder in folders for entry in read_entries(folder)}


def read_entries(folder: Path) -> Iterator[Entry]:
    for path in sorted((folder / "dataset").glob("*.yaml")):
        try:
            node = yaml.safe_load(path.read_text(encoding="utf-8"))["dataset"]
            about = None if node.get("about") is None else About.model_validate(node["about"])
            yield Entry(path.stem, node["source"], about)
        except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:  # no UTF-8, too
            reason = " ".join(str(error).split())
            raise UserError(f"{path} does not describe a data set ({reason}): mend or remove it.") from None


def find_entry(catalogue: Mapping[str, Entry], name: str) -> Entry:
    if name not in catalogue:
        raise unknown("data set", name, catalogue)
    return catalogue[name]
