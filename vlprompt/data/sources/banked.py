"""Data sets without images: names, labels and keys of a feature bank that was unpacked."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vlprompt.data.cache.checked import sealed, unsealed
from vlprompt.data.dataset import PARTS, Dataset, Item
from vlprompt.errors import UserError

DATASETS = "datasets"  # their folder, below that of the bank
Row = tuple[str, int, str]  # image, label, key: empty where no feature of it is there


@dataclass(frozen=True)
class Banked:
    """Stands for images that are not here, only their features."""

    name: str  # of the data set
    keys: Mapping[str, str] = field(hash=False, compare=False)

    def key(self, image: str) -> str:
        """Raises: UserError where the bank has no feature of this image."""
        if not self.keys.get(image):
            self(image)
        return self.keys[image]

    def __call__(self, image: str) -> Image.Image:
        """Raises: UserError, always."""
        raise UserError(
            f"the images of {self.name} are not here, and the feature bank lacks what this run needs of '{image}': "
            "unpack the bank again if a file of it was damaged, pack one for the same method, seed and shots, choose a "
            "method that leaves the image tower alone, or get the data set"
        )


class Contents(BaseModel):
    """A data set as a bank carries it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^\w[\w.+=-]{0,99}$")
    classes: tuple[str, ...]
    rows: tuple[int, ...] | None = None
    train: list[Row]
    val: list[Row]
    test: list[Row]

    @model_validator(mode="after")
    def check_labels(self) -> "Contents":
        if not all(0 <= label < len(self.classes) for part in PARTS for _, label, _ in getattr(self, part)):
            raise ValueError("a label is no index of a class")
        return self

    def dataset(self) -> Dataset:
        parts: list[list[Row]] = [getattr(self, part) for part in PARTS]
        keys = {image: key for part in parts for image, _, key in part}
        train, val, test = (tuple(Item(image, label) for image, label, _ in part) for part in parts)
        return Dataset(self.name, self.classes, train, val, test, Banked(self.name, keys), self.rows)


def read(path: Path) -> Contents:
    """Raises: UserError where the file is damaged, or of a version without checksums."""
    try:
        return Contents.model_validate(unsealed(path))
    except (OSError, ValueError, ValidationError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} does not describe a data set ({reason}): unpack the bank again") from None


def text_of(content: Contents) -> str:
    """What `read` reads."""
    return sealed(content.model_dump(mode="json"))
