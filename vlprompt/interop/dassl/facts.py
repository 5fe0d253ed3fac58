"""What Dassl calls things in its logs and folders, and what they are called here."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Literal

DATASETS = {  # by the name in the configuration: that of its file and of folders, and ours
    "Caltech101": ("caltech101", "caltech101"),
    "OxfordPets": ("oxford_pets", "oxford_pets"),
    "StanfordCars": ("stanford_cars", "stanford_cars"),
    "OxfordFlowers": ("oxford_flowers", "flowers102"),
    "Food101": ("food101", "food101"),
    "FGVCAircraft": ("fgvc_aircraft", "fgvc_aircraft"),
    "SUN397": ("sun397", "sun397"),
    "DescribableTextures": ("dtd", "dtd"),
    "EuroSAT": ("eurosat", "eurosat"),
    "UCF101": ("ucf101", "ucf101"),
    "ImageNet": ("imagenet", "imagenet"),
    "ImageNetV2": ("imagenetv2", "imagenet_v2"),
    "ImageNetSketch": ("imagenet_sketch", "imagenet_sketch"),
    "ImageNetA": ("imagenet_a", "imagenet_a"),
    "ImageNetR": ("imagenet_r", "imagenet_r"),
}
FOLDERS = dict(DATASETS.values())
SHIFTED = ("imagenet_v2", "imagenet_sketch", "imagenet_a", "imagenet_r")  # ImageNet's classes in other pictures
TRAINERS = {
    "ZeroshotCLIP": "zero_shot",
    "ZeroshotCLIP2": "zero_shot",
    "CoOp": "coop",
    "CoCoOp": "cocoop",
    "KgCoOp": "kgcoop",
    "ProGrad": "prograd",
    "TCP": "tcp",
    "MMRL": "mmrl",
    "MMRLpp": "mmrl_plus_plus",
    "MultiModalAdapter": "mma",
    "MaPLe": "maple",
    "IVLP": "ivlp",
    "VPT": "vpt_deep",
    "PromptSRC": "promptsrc",
    "PromptKD": "promptkd",
    "TaskRes": "taskres",
    "CLIP_Adapter": "clip_adapter",
}
BACKBONES = {
    "RN50": "rn50",
    "RN101": "rn101",
    "ViT-B/32": "vit_b32",
    "ViT-B/16": "vit_b16",
    "ViT-L/14": "vit_l14",
}
HALVES: dict[str, Literal["all", "base", "novel"]] = {"all": "all", "base": "base", "new": "novel"}


@dataclass(frozen=True)
class Facts:
    """What is known of one training or test; None where neither its log nor its path says."""

    trainer: str | None = None
    dataset: str | None = None
    trained_on: str | None = None  # where the tested model comes from another data set
    shots: int | Literal["all"] | None = None
    seed: int | None = None
    half: Literal["all", "base", "novel"] | None = None
    backbone: str | None = None
    precision: str | None = None
    eval_only: bool = False
    ctx_init: str | None = None  # "" for random values
    position: str | None = None
    image_depth: int | None = None

    @property
    def method(self) -> str | None:
        """Our name of the method."""
        if self.trainer == "IVLP" and self.image_depth == 0:
            return "language_prompts"
        if self.trainer == "VPT" and self.image_depth == 1:
            return "vpt_shallow"
        if self.trainer is None:
            return None
        return TRAINERS.get(self.trainer, self.trainer.lower())

    def completed_by(self, other: "Facts") -> "Facts":
        """These facts, and those of `other` where these say nothing."""
        gaps = {name: value for name, value in vars(other).items() if getattr(self, name) is None}
        return replace(self, **gaps, eval_only=self.eval_only or other.eval_only)


def read_options(text: str) -> dict[str, str]:
    """The arguments and the configuration that Dassl prints at the head of a log, keys joined by dots."""
    options: dict[str, str] = {}
    parents: list[tuple[int, str]] = []
    inside = False
    for line in text.splitlines():
        if title := re.fullmatch(r"\*\* (.+) \*\*", line.strip()):
            inside, parents = title[1] in ("Arguments", "Config"), []
        elif line.startswith("Collecting env info"):
            break
        elif inside and (match := re.fullmatch(r"( *)([\w-]{1,100}):\s?(.*)", line)):
            indent, key, value = len(match[1]), match[2], match[3].strip()
            while parents and parents[-1][0] >= indent:
                parents.pop()
            parents.append((indent, key))
            if value or not options.get(key):
                options[".".join(name for _, name in parents)] = value
    return options


def facts_of_options(options: Mapping[str, str]) -> Facts:
    """What the head of a log says."""
    trainer = options.get("TRAINER.NAME") or options.get("trainer") or None
    stem = PurePath(options.get("dataset_config_file", "")).stem
    named = options.get("DATASET.NAME", "")
    dataset = DATASETS[named][1] if named in DATASETS else FOLDERS.get(stem, stem or named.lower())
    backbone, shots = options.get("MODEL.BACKBONE.NAME", ""), options.get("DATASET.NUM_SHOTS")
    section = _section(options, trainer)
    return Facts(
        trainer=trainer,
        dataset=dataset or None,
        trained_on=FOLDERS.get(_nearest(PurePath(options.get("model_dir", "")), FOLDERS) or ""),
        shots="all" if shots == "-1" else _whole(shots, least=1),
        seed=_whole(options.get("SEED", options.get("seed")), least=0),
        half=HALVES.get(options.get("DATASET.SUBSAMPLE_CLASSES", "")),
        backbone=BACKBONES.get(backbone) or (re.sub(r"\W+", "_", backbone.lower()) or None),
        precision=section.get("PREC") if section.get("PREC") in ("fp16", "fp32", "amp") else None,
        eval_only=options.get("eval_only") == "True",
        ctx_init=_phrase(section.get("CTX_INIT"), trainer),
        position=section.get("CLASS_TOKEN_POSITION"),
        image_depth=_whole(section.get("PROMPT_DEPTH_VISION"), least=0),
    )


def _section(options: Mapping[str, str], trainer: str | None) -> dict[str, str]:
    """The trainer's own options; KgCoOp, ProGrad and TCP keep theirs under CoOp's name."""
    for name in (re.sub(r"\W|_", "", trainer or "").upper(), "COOP"):
        prefix = f"TRAINER.{name}."
        if section := {key.removeprefix(prefix): value for key, value in options.items() if key.startswith(prefix)}:
            return section
    return {}


def _phrase(value: str | None, trainer: str | None) -> str | None:
    """KgCoOp's and ProGrad's is a bare true or false, and stands for this phrase, or for one of each data set."""
    if value == "True":
        return None if trainer == "ProGrad" else "a photo of a"
    return "" if value == "False" else value


def _whole(value: str | None, *, least: int) -> int | None:
    if value is None or not re.fullmatch(r"-?\d{1,9}", value) or int(value) < least:
        return None
    return int(value)


def facts_of_path(path: PurePath) -> Facts:
    """What the folders say, as the published scripts name them; the last of several counts."""
    text = "/" + "/".join(part for part in path.parts if part != path.anchor)
    shots = re.findall(r"shots?_(\d{1,6})(?=[/_])|(\d{1,6})shots?(?=[/_])", text)
    seed = re.findall(r"(?<=/)seed(\d{1,6})(?=/)", text)
    half = re.findall(r"(?<=/)(?:(?:train|test)_(base|new|all)|(base|new)(?=/seed\d))(?=/)", text)
    backbone = re.findall(r"(?<=/)(rn50|rn101|vit_b32|vit_b16|vit_l14)(?=[/_])", text)
    position = re.findall(r"_ctp(end|middle|front)(?=/)", text)
    return Facts(
        trainer=_nearest(path, TRAINERS),
        dataset=FOLDERS.get(_nearest(path, FOLDERS) or ""),
        shots=int("".join(shots[-1])) or None if shots else None,
        seed=int(seed[-1]) if seed else None,
        half=HALVES["".join(half[-1])] if half else None,
        backbone=backbone[-1] if backbone else None,
        position=position[-1] if position else None,
    )


def _nearest(path: PurePath, names: Iterable[str]) -> str | None:
    """The last folder that has one of these names."""
    known = set(names)
    return next((part for part in reversed(path.parts) if part in known), None)
