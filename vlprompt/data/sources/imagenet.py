"""ImageNet in the layouts that people have it in, and the data sets made after it."""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vlprompt.data.dataset import Dataset, Item
from vlprompt.data.presence import USE_PRESENT, Gap, gaps, published_part
from vlprompt.data.sources.files import Files
from vlprompt.data.sources.layouts import folders_in, is_image
from vlprompt.data.sources.variant_lists import read_lines
from vlprompt.errors import UserError
from vlprompt.textfiles import absolute, read_text

CLASSES = "classnames.txt"
LAYOUTS = ("images", ".", "ILSVRC/Data/CLS-LOC")  # CoOp's; torchvision's; Kaggle's
TRAINING, VALIDATION = "training", "validation"
SOLUTION = "LOC_val_solution.csv"  # Kaggle's: the classes of validation images, which lie in one folder there


@dataclass(frozen=True)
class ImageNetFiles(Files):
    """Images named PART/WNID/FILE, wherever a layout keeps them; `flat`: validation images have no class folders."""

    flat: bool = False

    def locate(self, image: str) -> Path:
        part, _, file = image.split("/", 2)
        return self.root / part / file if self.flat and part == "val" else self.root / image

    def has(self, image: str) -> bool:
        """Only a file of solutions names images that may not be there; the others were seen in their folders."""
        return not (self.flat and image.startswith("val/")) or super().has(image)


def load(
    name: str,
    *,
    root: str | Path,
    folder: str,
    path: str | None = None,
    need_images: bool = True,
    present: bool = False,
) -> Dataset:
    """ImageNet-1k: its validation images are the test, as in CoOp; it has none for choosing settings.

    It lies in `path`, else in `root/folder`. Files are sorted within each class, so that few-shot subsets depend on
    nothing but the seed. `need_images`: of each class to train on; `present`: classes without training or validation
    images are left out (which images a class should have is written nowhere).

    Raises: UserError that names the layouts that are read.
    """
    base = absolute(path or Path(root, folder))
    images = next((base / layout for layout in LAYOUTS if (base / layout / "train").is_dir()), None)
    if images is None or not (images / "val").is_dir():
        looked = ", ".join(str((base / layout).resolve() / "{train,val}") for layout in LAYOUTS)
        raise UserError(f"{name} is not complete: there is none of {looked}. `vlprompt data get {name}` tells more.")
    wnids, classes = read_classes(name, [base / CLASSES, Path(root) / folder / CLASSES])
    train = list_folders(images / "train", wnids, "train/")
    flat = any(is_image(path.name) for path in (images / "val").iterdir())
    test = read_solution(base, wnids) if flat else list_folders(images / "val", wnids, "val/")
    dataset = Dataset(name, classes, tuple(train), (), tuple(test), ImageNetFiles(images, flat=flat))
    missing = gaps_in(dataset, list(wnids), look=present)
    if present:
        return published_part(dataset, missing)
    untrained = [gap for gap in missing if gap.part == TRAINING]
    if untrained and need_images:
        raise UserError(
            f"{images / 'train'} has no images of {len(untrained)} classes ({untrained[0].name}, ...): unpack it "
            f"again, {USE_PRESENT}."
        )
    return dataset


def gaps_in(dataset: Dataset, wnids: Sequence[str], *, look: bool) -> list[Gap]:
    """The classes without training or validation images, in the order of labels.

    `look`: for each validation image, too, where a file lists them.
    """
    missing = {gap.label: gap for gap in gaps(dataset)} if look else {}
    trained, tested = {item.label for item in dataset.train}, {item.label for item in dataset.test}
    for label, wnid in enumerate(wnids):
        name, n_parts = f"{wnid} ({dataset.classes[label]})", (label not in trained) + (label not in tested)
        if n_parts:
            whole = n_parts == 2 or (label in missing and missing[label].is_whole)
            part = VALIDATION if label in trained else TRAINING
            missing[label] = Gap(label, name, 2 if whole else 1, 2, part)
        elif label in missing:
            missing[label] = replace(missing[label], name=name)
    return [missing[label] for label in sorted(missing)]


def load_variant(name: str, *, root: str | Path, folder: str, images: str) -> Dataset:
    """A test set for classes of ImageNet, in folders that are named after a wnid, or a class's number.

    Classes without a folder are left out; `rows` has the labels of the others among ImageNet's.

    Raises: UserError where the folder or the names of the classes are missing.
    """
    base = absolute(root) / folder
    if not (base / images).is_dir():
        raise UserError(f"{name} is not complete: there is no {base / images}. Get it with: vlprompt data get {name}.")
    wnids, names = read_classes(name, [base / CLASSES, base.parent / "imagenet" / CLASSES])
    folders = [folder.name for folder in folders_in(base / images)]
    numbered = bool(folders) and all(re.fullmatch("[0-9]+", folder) for folder in folders)
    rows_of = {str(label): label for label in wnids.values()} if numbered else wnids
    rows = tuple(sorted(rows_of[folder] for folder in folders if folder in rows_of))
    if not rows:
        raise UserError(f"{base / images} has no folders of ImageNet's classes (n01440764, ...): unpack it again.")
    new = {row: label for label, row in enumerate(rows)}
    labels = {folder: new[row] for folder, row in rows_of.items() if row in new}
    test = tuple(list_folders(base / images, labels))
    return Dataset(name, tuple(names[row] for row in rows), (), (), test, Files(base / images), rows=rows)


def read_classes(name: str, paths: list[Path]) -> tuple[dict[str, int], tuple[str, ...]]:
    """Labels by wnid, and class names by label, of the first file there is: lines of a wnid and a name."""
    path = next(filter(Path.is_file, paths), None)
    if path is None:
        raise UserError(f"{name} is not complete: there is no {paths[0]}. Get it with: vlprompt data get {name}.")
    lines = [line.partition(" ") for line in read_lines(path)]
    wnids = {wnid: label for label, (wnid, _, _) in enumerate(lines)}
    if not lines or len(wnids) < len(lines) or not all(class_name.strip() for _, _, class_name in lines):
        raise UserError(f"{path} is no list of wnids and class names, one of each a line: delete it and get it again.")
    if list(wnids) != sorted(wnids):
        raise UserError(f"{path} is not in the order of its wnids: delete it and get it again.")
    return wnids, tuple(class_name.strip() for _, _, class_name in lines)


def list_folders(base: Path, labels: dict[str, int], prefix: str = "") -> list[Item]:
    """The images of each class's folder, sorted by name; classes in the order of their labels."""
    items = []
    for folder in sorted(labels, key=lambda folder: labels[folder]):
        if (base / folder).is_dir():
            files = sorted(path.name for path in (base / folder).iterdir() if is_image(path.name))
            items += [Item(f"{prefix}{folder}/{file}", labels[folder]) for file in files]
    return items


def read_solution(base: Path, wnids: dict[str, int]) -> list[Item]:
    """Kaggle's validation images: `ImageId,PredictionString` with the wnid first in the latter."""
    paths = [base / SOLUTION, base / "ILSVRC" / SOLUTION, base.parent / SOLUTION]
    path = next(filter(Path.is_file, paths), None)
    if path is None:
        raise UserError(
            f"the validation images below {base} are in one folder and nothing says which classes they are of: "
            f"put Kaggle's {SOLUTION} into {base}, or the images into folders of their classes."
        )
    items = []
    for row in csv.DictReader(read_text(path).splitlines()):
        image, wnid = row.get("ImageId") or "", (row.get("PredictionString") or " ").split(" ")[0]
        if wnid not in wnids or not re.fullmatch(r"\w+", image):
            raise UserError(f"{path} has the line {image},{wnid}, which is no image and class: fetch it again.")
        items.append(Item(f"val/{wnid}/{image}.JPEG", wnids[wnid]))
    return sorted(items, key=lambda item: (item.label, item.image))
