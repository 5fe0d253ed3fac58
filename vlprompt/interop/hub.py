"""Trained learners on a model hub: a folder to upload, and what is read from there."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlprompt import demo
from vlprompt.errors import UserError, printable
from vlprompt.interop.card import card
from vlprompt.interop.folder import whole_folder
from vlprompt.interop.paths import files_named
from vlprompt.learners.base import Learner
from vlprompt.results import learner_files
from vlprompt.results.learner_files import CONFIG, TENSORS
from vlprompt.results.record import Record
from vlprompt.towers.origin import Origin, origin_of
from vlprompt.towers.weights import reason_of

README = "README.md"
SCHEME = "hf://"
PART = r"[A-Za-z0-9][\w.-]{0,95}"
SOURCE = re.compile(rf"hf:/{{1,2}}(?P<repository>{PART}/{PART})(@(?P<revision>[\w][\w./-]{{0,199}}))?", re.ASCII)
TRAVELS = ("method", "target", "arguments", "dataset", "protocol", "split_hash", "precision", "as_shown", "test_time")
"""What of a learner's description goes to a hub, in addition to its backbone, classes and preprocessing."""
BACKBONE = ("model", "weights", "quantize", "images")


def fetch_learner(source: str) -> Path:
    """The folder, in the hub's cache, of `hf://owner/name` or `hf://owner/name@revision`: its tensors and its JSON.

    Nothing else is fetched, and nothing of it is run.

    Raises:
        UserError: another form; a repository that is not there, or is no learner; a hub that cannot be reached; a
            description that names files.
    """
    parts = SOURCE.fullmatch(source)
    if parts is None or ".." in source:
        raise UserError(
            f"'{source}' names nothing on the hub: write {SCHEME}owner/name, or {SCHEME}owner/name@revision"
        )
    repository, revision = parts["repository"], parts["revision"]
    name = f"{SCHEME}{repository}" + (f"@{revision}" if revision else "")
    folder = _snapshot(repository, revision, name)
    if not (folder / CONFIG).is_file():
        raise UserError(f"{name} holds no {CONFIG}, so it is no learner of vlprompt's")
    about = learner_files.read_config(folder)
    for setting, path in files_named(about["backbone"], about["arguments"]):
        raise UserError(
            f"{CONFIG} of {name} names a file ({setting}={path[:100]}), which is not on the hub and was not read: ask "
            "its owner for a learner on a published backbone"
        )
    return folder


def _snapshot(repository: str, revision: str | None, name: str) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, logging

    level, silent = logging.get_verbosity(), are_progress_bars_disabled()
    logging.set_verbosity_error()  # else it tells of every attempt
    disable_progress_bars()
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=[CONFIG, TENSORS]))
    except Exception as error:  # the hub's client raises dozens of kinds
        kind = type(error).__name__
        if kind in ("RepositoryNotFoundError", "GatedRepoError"):
            why = "there is no such model, or it is not for everybody: check the name, or set HF_TOKEN"
        elif kind == "RevisionNotFoundError":
            why = f"the model has no revision '{revision}': give a branch, a tag or a commit"
        elif constants.HF_HUB_OFFLINE:
            why = "HF_HUB_OFFLINE is set and it was not fetched before: unset it, or give the folder of a learner"
        else:
            reason = reason_of(error.__cause__ if isinstance(error.__cause__, Exception) else error)
            reason = reason.partition(" For more information check")[0]
            why = f"{reason}: connect this machine to the network, or give the folder of a learner"
        raise UserError(f"{name} could not be fetched: {printable(why)}") from None
    finally:
        logging.set_verbosity(level)
        if not silent:
            enable_progress_bars()


def write_hub(
    learner: Learner, about: Mapping[str, Any], record: Record | None, folder: Path, *, force: bool = False
) -> list[str]:
    """Write a folder for a hub: the tensors, their description, and a model card; -> the files' names.

    `about` is the learner's description, as its folder has it; `record` is of its run. Of both, paths and what names
    this machine or its user stay here.

    Raises:
        UserError: a backbone or an argument that is a file of this machine; files that are there already, unless
            `force`; a full disk.
    """
    backbone = {name: about["backbone"][name] for name in BACKBONE if about["backbone"].get(name) is not None}
    for name, path in files_named(backbone, about["arguments"]):
        named = "use a model that open_clip, timm or a hub have by name"
        do = named if name.startswith("backbone") else "train without it"
        raise UserError(f"{name} is '{path}', a file of this machine, which does not travel to a hub: {do}")
    shared = {name: about[name] for name in TRAVELS if name in about} | {"backbone": backbone}
    tensors = learner.state_dict()
    model = backbone["model"]
    origin = Origin(None, "mit") if model in demo.BACKBONES else origin_of(model, backbone["weights"])
    with whole_folder(folder, (TENSORS, CONFIG, README), force=force) as draft:
        if tensors:
            learner_files.save(learner, draft, shared)
        else:
            learner_files.describe(learner, draft, shared)
        text = card(learner, shared, record, origin)
        (draft / README).write_text(text, encoding="utf-8")
        return sorted(path.name for path in draft.iterdir())
