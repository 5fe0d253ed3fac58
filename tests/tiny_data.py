"""Every data set of the field in its real layout, cut down to a few images: what is published, and how it is packed."""

import io
import json
import tarfile
import zipfile
from pathlib import Path

from PIL import Image

from vlprompt.config.paths import config_dir
from vlprompt.data.download.catalogue import Entry, read_catalogue

CATALOGUE = read_catalogue([config_dir()])
FETCHED = sorted(name for name, e in CATALOGUE.items() if e.about and e.about.parts and all(e.about.parts.values()))
WNIDS = {"n01440764": "tench", "n02012849": "crane", "n03126707": "crane"}  # two classes of one name
FOLDERS = {  # of two classes, where images lie in folders of their classes
    "caltech101": {"Faces": "face", "airplanes": "airplane"},
    "food101": {"apple_pie": "apple_pie", "waffles": "waffles"},
    "sun397": {"a/abbey": "abbey", "a/apartment_building/outdoor": "outdoor apartment_building"},
    "dtd": {"banded": "banded", "zigzagged": "zigzagged"},
    "eurosat": {"AnnualCrop": "Annual Crop Land", "SeaLake": "Sea or Lake"},
    "ucf101": {"Apply_Eye_Makeup": "Apply_Eye_Makeup", "Yo_Yo": "Yo_Yo"},
    "oxford_pets": {"": "abyssinian"},
    "flowers102": {"": "pink primrose"},
    "stanford_cars": {"cars_train": "2012 Acura RL Sedan", "cars_test": "2012 Audi TTS Coupe"},
}
N_EACH = 6  # images of a class: 2 to train, 2 to validate, 2 to test


def picture(seed: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 16), (40 * seed % 256, 90, 200)).save(file, "jpeg")
    return file.getvalue()


def make_split(name: str) -> dict[str, list[list[str | int]]]:
    """A split file of two classes, in the form of the published ones."""
    split: dict[str, list[list[str | int]]] = {"train": [], "val": [], "test": []}
    classes = list(FOLDERS[name].items())
    for label, (folder, class_name) in enumerate(classes if len(classes) == 2 else [*classes, ("", "second")]):
        for i in range(N_EACH):
            path = f"{folder}/image_{label}{i}.jpg".lstrip("/")
            split[("train", "val", "test")[i // 2]].append([path, label, class_name])
    return split


def make_files(name: str) -> dict[str, bytes]:
    """All files of a data set below its folder."""
    entry = CATALOGUE[name]
    if name.startswith("imagenet_"):
        names = "".join(f"{wnid} {class_name}\n" for wnid, class_name in WNIDS.items())
        folders = [str(i) for i in range(len(WNIDS))] if name == "imagenet_v2" else list(WNIDS)[:-1]
        images = {f"{entry.source['images']}/{f}/{i}.jpg": picture(i) for f in folders for i in range(2)}
        return {"classnames.txt": names.encode(), f"{entry.source['images']}/README.txt": b"words", **images}
    if name == "fgvc_aircraft":
        lists = {
            f"images_variant_{p}.txt": f"{i}1 707-320\n{i}2 A330 200\n" for i, p in enumerate(("train", "val", "test"))
        }
        images = {f"images/{i}{k}.jpg": picture(i) for i in range(3) for k in (1, 2)}
        return {"variants.txt": b"707-320\nA330 200\n", **{k: v.encode() for k, v in lists.items()}, **images}
    split = make_split(name)
    paths = [str(path) for part in split.values() for path, _, _ in part]
    images = {str(Path(entry.source["images"], path)): picture(i) for i, path in enumerate(paths)}
    return {entry.source["split"]: json.dumps(split).encode(), **images}


def pack(files: dict[str, bytes], members: dict[str, str], kind: str) -> bytes:
    """The archive that `members` unpacks to these files."""
    packed: dict[str, bytes] = {}
    for inside, target in members.items():
        prefix = "" if target == "." else f"{target}/"
        chosen = {file.removeprefix(prefix): content for file, content in files.items() if file.startswith(prefix)}
        if "!" in inside:
            outer, inner = inside.split("!")
            packed[outer] = pack_as({f"{inner}/{file}": content for file, content in chosen.items()}, outer)
        else:
            packed |= {f"{inside}/{file}": content for file, content in chosen.items()}
    return pack_as(packed, kind)


def pack_as(files: dict[str, bytes], name: str) -> bytes:
    """A zip or tar file, as the name ends."""
    out = io.BytesIO()
    if name.endswith(".zip"):
        with zipfile.ZipFile(out, "w") as archive:
            for file, content in files.items():
                archive.writestr(file, content)
    else:
        with tarfile.open(fileobj=out, mode="w" if name.endswith(".tar") else "w:gz") as tar:
            for file, content in files.items():
                info = tarfile.TarInfo(file)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def lay_out(name: str, root: Path) -> Entry:
    """The data set below a data root, complete."""
    entry = CATALOGUE[name]
    for file, content in make_files(name).items():
        path = entry.base(root) / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return entry
