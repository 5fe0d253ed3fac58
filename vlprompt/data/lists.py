"""Few-shot samples as somebody else drew them: a JSON object a line, with the path and the label of an image.

Source: Farina et al., "Rethinking Few-Shot Adaptation of Vision-Language Models in Two Stages" (CVPR 2025) publish
theirs in such files, because equal seeds give equal samples only where the random state is equal, too.
"""

import posixpath
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from vlprompt.data.dataset import Dataset, Item
from vlprompt.data.sampling import Shots
from vlprompt.errors import UserError
from vlprompt.textfiles import parse_json, read_text


class Line(BaseModel):
    """One image of a list."""

    model_config = ConfigDict(strict=True)

    path: str = Field(min_length=1, validation_alias=AliasChoices("path", "impath", "image"))
    label: int
    classname: str | None = None
    split: Literal["train", "val"] = "train"


@dataclass(frozen=True)
class ListSampler:
    """The images of the file `path`, in its order, whatever the seed."""

    path: Path

    def __call__(self, dataset: Dataset, *, shots: Shots, seed: int) -> tuple[list[Item], list[Item]]:
        """Raises: UserError where the file is damaged, or does not fit the data set or the shots."""
        known = {item.image: item for item in (*dataset.train, *dataset.val)}
        parts: dict[str, list[Item]] = {"train": [], "val": []}
        for number, line in read_list(self.path):
            item = known.get(find(line.path, known) or "")
            if item is None:
                raise UserError(
                    f"{self.path}, line {number}: {line.path} is no training or validation image of {dataset.name}: "
                    "choose the list of this data set."
                )
            if item.label != line.label:
                raise UserError(
                    f"{self.path}, line {number}: label {line.label}, but {dataset.name} has {item.image} as "
                    f"{item.label} ({dataset.classes[item.label]}): choose the list of this data set."
                )
            parts[line.split].append(item)
        if not parts["train"]:
            raise UserError(f"{self.path} has no training images: choose a list with lines of training images.")
        most = max(Counter(item.label for item in parts["train"]).values())
        if shots not in ("all", most):
            raise UserError(f"{self.path} has {most} training images of a class and shots={shots}: use shots={most}.")
        return parts["train"], parts["val"]


def find(path: str, known: dict[str, Item]) -> str | None:
    """The known image that a path ends with: lists have been written with folders of other machines in front."""
    steps = posixpath.normpath(path.replace("\\", "/")).split("/")
    tails = ("/".join(steps[start:]) for start in range(len(steps)))
    return next((tail for tail in tails if tail in known), None)


def read_list(path: Path) -> Iterator[tuple[int, Line]]:
    """Line numbers and lines. Raises: UserError that names the line."""
    for number, text in enumerate(read_text(path, f"sampler.file={path}").split("\n"), start=1):
        if text.strip():
            try:
                yield number, Line.model_validate(parse_json(text))
            except ValidationError as error:
                first = error.errors(include_url=False)[0]
                why = f": {first['loc'][0]}: {first['msg']}" if first["loc"] else ""
                raise UserError(
                    f"{path}, line {number} is no object with path, label and perhaps split{why}."
                ) from None
            except ValueError as error:
                raise UserError(f"{path}, line {number} cannot be read: {error}.") from None


def make_lines(train: list[Item], val: list[Item], classes: tuple[str, ...]) -> list[dict[str, str | int]]:
    """A sample as objects: training images in the order they were drawn, then validation images."""
    return [
        {"split": split, "path": item.image, "label": item.label, "classname": classes[item.label]}
        for split, items in (("train", train), ("val", val))
        for item in items
    ]
