"""What is known about one run: the content of its `result.json`."""

import contextlib
import hashlib
import json
import re
import subprocess
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

import vlprompt
from vlprompt.data.disk import sha256_of
from vlprompt.errors import DamagedError, UserError
from vlprompt.textfiles import ordinary

SCHEMA_VERSION = 1
FILE = "result.json"
MOST_BYTES = 10**8  # of a record: a curve of 100,000 epochs has a tenth of it
CHECKSUM = "checksum"  # its last field: of all others
PACKAGES = ("torch", "torchvision", "open_clip_torch", "timm", "hydra-core", "numpy", "vlprompt")


Selection = Literal["fixed", "few_shot_val", "val", "per_target", "test"]
SELECTIONS: Mapping[Selection, str] = {
    "fixed": "no image chose anything",
    "few_shot_val": "on the validation images of the few-shot sample",
    "val": "on the whole validation split, or what other software had of it",
    "per_target": "other settings for each data set, as printed",
    "test": "on test images, so that these numbers are no estimate",
}
"""How settings, an epoch or what a method searches were chosen, the less of the test they saw the earlier."""


Inference = Literal["inductive", "episodic", "online", "transductive"]
INFERENCES: Mapping[Inference, str] = {
    "inductive": "each image by the learner as it was trained",
    "episodic": "by the learner as the image's own views adapt it",
    "online": "as the images before adapt it, in an order that the seed draws, so that n seeds are n orders",
    "transductive": "as all images of the test adapt it",
}
"""What else of the test a prediction sees: nothing; the image's own views; the images before; all images."""


def selected_on(select_on: Literal["val", "test"], sampler: str, shots: int | str) -> Selection:
    """What `fit.select_on` comes to: the validation images are few, unless none are drawn."""
    whole = shots == "all" or sampler == "tip_adapter"
    return "few_shot_val" if select_on == "val" and not whole else select_on


InAll = Annotated[str, StringConstraints(pattern=r"^[1-9]\d*-in-all$")]


def shots_order(shots: int | str) -> float:
    """Sorts numbers of shots: images a class, images in all where classes have different numbers, "all" last."""
    if shots == "all":
        return float("inf")
    return float(shots) if isinstance(shots, int) else 1e9 + int(shots.partition("-")[0])


def most_seen(*selections: Selection) -> Selection:
    """The one that saw most of the test."""
    return max(selections, key=list(SELECTIONS).index)


class RunKey(BaseModel):
    """What one run is a run of: where it stands in every table."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    protocol: str
    dataset: str
    backbone: str
    method: str
    variant: str | None = None  # `name=`, or a hash of what differs from the default recipe
    shots: int | Literal["all"] | InAll  # 40-in-all of unbalanced ones; 0 for a learner that is not trained
    seed: int

    @property
    def learner(self) -> str:
        """The method, with its variant where there is one."""
        return self.method if self.variant is None else f"{self.method}@{self.variant}"

    def folder(self, root: Path) -> Path:
        """Where this run lies below the results root. Raises: UserError where a name cannot be that of a folder."""
        for part in filter(None, (self.protocol, self.dataset, self.backbone, self.method, self.variant)):
            if not re.fullmatch(r"\w[\w.+=-]{0,99}", part):
                raise UserError(
                    f"'{part}' cannot name a folder of results: use up to 100 letters, digits and _ . + = -, "
                    "a letter or digit first."
                )
        return root.joinpath("runs", *self.folder_names)

    @property
    def folder_names(self) -> tuple[str, ...]:
        return (self.protocol, self.dataset, self.backbone, self.learner, f"shots{self.shots}", f"seed{self.seed}")


class Record(RunKey):
    """Everything that is known about one run: the content of `result.json`."""

    model_config = ConfigDict(ser_json_inf_nan="strings")

    schema_version: int = SCHEMA_VERSION
    status: Literal["finished", "failed", "not_applicable"]
    reason: str | None = None  # why it is not finished
    weights: str | None = None  # of the backbone: a tag, a path or "random"
    precision: str | None = None
    device: str | None = None
    config: dict[str, Any] = {}
    config_hash: str = ""
    changes: dict[str, Any] | None = None  # settings that are not the default's, by dotted key; None: not known
    recipe: list[str] = []
    selection: Selection = "fixed"
    inference: Inference = "inductive"
    test_time: dict[
        str, str | int
    ] = {}  # name of the method, views of an image, and the seed of these and of the order
    versions: dict[str, str] = {}
    git: str | None = None
    split_hash: str | None = None
    target_hashes: dict[str, str] = {}  # of the splits of other data sets that were tested
    scores: dict[str, dict[str, int | float]] = {}  # by test split; fractions
    calibration: dict[str, Any] = {}  # its name, and the numbers that were fitted
    n_classes: dict[str, int] = {}  # by test split: those that are told from each other
    headline: dict[str, float] = {}  # what the protocol makes of the accuracies; fractions
    # trained_parameters, stored_bytes, *_seconds, peak_memory_bytes, steps, seconds_per_step, backbone_bytes,
    # quantization_error, mergeable; flops_* and seconds_per_image (costs.py); views: of a test image, where it adapts
    # the learner; stops: after which the run was resumed; once also trained_together, of runs that shared the passes of
    # the towers
    cost: dict[str, bool | int | float | None] = {}
    preprocess: dict[str, Any] = {}  # how images were prepared for the model; earlier records do not say
    bank: dict[str, Any] = {}
    curve: list[dict[str, int | float | None]] = []  # epoch, loss, accuracy, lr
    imported: dict[str, dict[str, str | int]] = {}  # by test split: the log it was read from, its sha256, its decimals
    files: dict[str, str] = {}  # sha256 of the other files of the run; earlier records have none
    created: str = Field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))

    @model_validator(mode="before")
    @classmethod
    def _in_todays_words(cls, fields: Any) -> Any:
        """Earlier records say last, val or test of their own search, and their configuration nothing about it."""
        if not isinstance(fields, dict) or not isinstance(config := fields.get("config") or {}, dict):
            return fields  # which is told of what it is
        earlier = fields.get("selection")
        if earlier == "val" and config and "selection" not in config:
            sampler = config.get("sampler")
            name = sampler.get("name", "coop") if isinstance(sampler, dict) else "coop"
            return {**fields, "selection": selected_on("val", name, fields.get("shots", 0))}
        return {**fields, "selection": "fixed"} if earlier == "last" else fields

    @property
    def key(self) -> RunKey:
        return RunKey(**{name: getattr(self, name) for name in RunKey.model_fields})

    @classmethod
    def read(cls, folder: Path) -> "Record | None":
        """The record in a run's folder, None where there is none.

        Raises: DamagedError; UserError where this version, or this user, cannot read it.
        """
        path = folder / FILE
        try:
            content = ordinary(path, MOST_BYTES).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except PermissionError as error:
            raise UserError(f"the record '{path}' cannot be read ({error.strerror}): ask its owner.") from error
        except OSError as error:
            raise damaged(path, error.strerror or str(error)) from error
        try:
            if _is_newer(fields := json.loads(content)):
                raise UserError(f"'{path}' was written by a newer vlprompt: update vlprompt to read it.")
            record = cls.model_validate(fields)
        except ValidationError as error:
            first = error.errors()[0]
            reason = f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg']}"
            raise damaged(path, reason) from error
        except (ValueError, RecursionError) as error:
            raise damaged(path, f"it is no JSON: {error}" if content.strip() else "it is empty") from error
        if fields.pop(CHECKSUM, None) not in (None, checksum(fields)):
            raise damaged(path, "it does not have its checksum")
        for name, scores in record.scores.items():  # which holds without a checksum, too
            correct, total, accuracy = (scores.get(key, 0) for key in ("correct", "total", "accuracy"))
            if total and not record.imported and not abs(accuracy - correct / total) < 1e-6:
                raise damaged(path, f"{name} has an accuracy of {accuracy}, and {correct} of {total} images right")
        return record

    def text(self) -> str:
        """The content of `result.json`: the fields, last their checksum."""
        fields = json.loads(self.model_dump_json())
        return json.dumps(fields | {CHECKSUM: checksum(fields)}, indent=2, ensure_ascii=False) + "\n"


def checksum(fields: Mapping[str, Any]) -> str:
    """sha256 of the fields of a record, whatever their order and the space between them."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def checked(path: Path) -> Path:
    """A file of a run, once it is what the record next to it says. Records of earlier versions say nothing.

    Raises: DamagedError; OSError where it cannot be read.
    """
    for _ in range(2):  # again: a new run may have come between the two
        record = Record.read(path.parent)
        if record is None or not record.files or record.files.get(path.name) == sha256_of(path):
            return ordinary(path)
    raise damaged(path, "it is not the file that its record was written with")


def damaged(path: Path, reason: str) -> DamagedError:
    return DamagedError(f"'{path}' is damaged ({' '.join(reason.split())[:200]}): its run has to be made again.")


def _is_newer(fields: object) -> bool:
    version = fields.get("schema_version") if isinstance(fields, dict) else None
    return isinstance(version, int) and version > SCHEMA_VERSION


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that results depend on, as installed."""
    import platform

    installed = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return installed


def git_commit() -> str | None:
    """The commit of the checkout that the running code lies in, "+dirty" where files differ; None outside one."""
    root = Path(vlprompt.__file__).resolve().parents[1]
    if not (root / ".git").exists():  # an installed package may lie in a checkout of something else
        return None
    command = ["git", f"--git-dir={root / '.git'}", f"--work-tree={root}", "describe"]
    command += ["--always", "--exclude=*", "--abbrev=40", "--dirty=+dirty"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None
