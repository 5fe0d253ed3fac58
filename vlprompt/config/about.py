"""What a method, a data set, a backbone or a protocol is called in print, and its paper: `about` in its YAML."""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vlprompt.config.paths import config_dir
from vlprompt.data.download import catalogue
from vlprompt.errors import UserError

Group = Literal["method", "dataset", "backbone", "protocol"]
FAMILIES = (
    *("zero-shot", "text prompts", "visual prompts", "multi-modal prompts", "prefixes", "adapters and caches"),
    *("low-rank and weight methods", "linear"),
)
"""Those of the methods, in the order in which they are shown."""
OTHERS = "others"  # which have no family


class About(BaseModel):
    """`name` as papers print it, `paper` as in "Zhou et al., IJCV 2022", `source` its address."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    name: Annotated[str, Field(min_length=1)]
    family: str | None = None
    paper: str | None = None
    source: str | None = None


@cache
def about(group: Group, name: str, folders: tuple[Path, ...] = ()) -> About:
    """What the YAML of this name says about itself; of one that says nothing or is not there, its name alone.

    `folders` of settings come after the package's own; the last one that has the name wins.

    Raises:
        UserError: a file whose `about` is none.
    """
    path = paths(group, folders).get(name)
    given = None if path is None else read(path, group)
    if given is None or path is None:
        return About.model_construct(name=name)
    try:
        if group != "dataset":
            return About.model_validate(given)
        data = catalogue.About.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(["about", *map(str, first["loc"])])
        raise UserError(f"{path}: {where} is wrong ({first['msg']}): mend or remove it") from None
    return About(name=data.name or data.title, family=data.family, paper=data.citation, source=data.home)


def display_name(method: str, variant: str | None = None) -> str:
    """A learner as papers print it: "CoOp", "VPT-Deep (n_tokens=4)". Of METHOD@VARIANT both parts are read.

    `variant` is a name, or settings as `method.n_tokens=4,fit.lr=0.1`; those of the method are shown without its name,
    and what is done to the trained learner by its name alone: "CoOp (temperature)".
    """
    method, _, label = method.partition("@")
    bare = re.sub(r"\bmethod\.|\b(calibration|test_time)=", "", variant or label)
    settings = bare.replace(",", ", ").replace(",  ", ", ")
    name = about("method", method).name
    return f"{name} ({settings})" if settings else name


def paths(group: Group, folders: Sequence[Path] = ()) -> dict[str, Path]:
    """The files of a group by their names, in alphabetical order."""
    files = {path.stem: path for folder in (config_dir(), *folders) for path in (folder / group).glob("*.yaml")}
    return dict(sorted(files.items()))


def read(path: Path, group: Group) -> Any:
    """`about` of a file, at its top or in its group; None where there is none. Raises: UserError."""
    try:
        node = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"cannot read {path} ({' '.join(str(error).split())}): mend or remove it") from None
    for part in (node, node.get(group) if isinstance(node, Mapping) else None):
        if isinstance(part, Mapping) and part.get("about") is not None:
            return part["about"]
    return None


def without_about(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without what its files say about themselves, which no run reads; a data set keeps its own."""
    parts = {group: part for group in ("backbone", "protocol") if isinstance(part := config.get(group), Mapping)}
    bare = {group: {key: value for key, value in part.items() if key != "about"} for group, part in parts.items()}
    return {key: value for key, value in config.items() if key != "about"} | bare


def by_family(group: Group, folders: tuple[Path, ...] = ()) -> dict[str, dict[str, About]]:
    """All of a group by family and name: the families of methods in their order, then others, those without one last.

    Raises:
        UserError: a file whose `about` is none.
    """
    everything = {name: about(group, name, folders) for name in paths(group, folders)}
    families = dict.fromkeys((*FAMILIES, *sorted({one.family for one in everything.values() if one.family}), None))
    everything = dict(sorted(everything.items(), key=lambda item: item[1].name.casefold()))
    members = {family: {n: one for n, one in everything.items() if one.family == family} for family in families}
    return {family or OTHERS: those for family, those in members.items() if those}


def recipes_by_method(folders: tuple[Path, ...] = ()) -> dict[str, dict[str, str]]:
    """What each recipe is, in the first sentence of its comment, by method and name as in `recipe=coop/ijcv`."""
    files = {
        path.relative_to(folder / "recipe").with_suffix("").as_posix(): path
        for folder in (config_dir(), *folders)
        for path in (folder / "recipe").glob("*/*.yaml")
    }
    sentences: dict[str, dict[str, str]] = {}
    for name, path in sorted(files.items()):
        sentences.setdefault(name.partition("/")[0], {})[name] = first_sentence(path)
    return sentences


def first_sentence(path: Path) -> str:
    """Of the comment at the top of a file, which may follow the line that gives its package. Raises: UserError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path} ({error}): mend or remove it") from None
    comment = [line.lstrip("# ") for line in takewhile(lambda line: line.startswith("#"), lines)]
    text = " ".join(line for line in comment if not line.startswith("@package"))
    return re.split(r"(?<=[\w)\"'])\. (?=[A-Z])", text)[0].rstrip(".")
