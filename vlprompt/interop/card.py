"""The model card of a learner: what it is, how it was trained and tested, how to load it."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from vlprompt import __version__, demo
from vlprompt.config.about import About, about
from vlprompt.errors import first_names
from vlprompt.interop.paths import without_folders
from vlprompt.learners.base import Learner
from vlprompt.reports.escapes import markdown, terminal
from vlprompt.reports.report.again import command
from vlprompt.reports.summary import UNTRAINED
from vlprompt.results.metrics import METRICS
from vlprompt.results.record import Record
from vlprompt.towers.origin import Origin

COLUMNS = ("accuracy", "macro_f1", "ece", "nll")
MOST_CLASSES = 12  # that are named
UNKNOWN = "unknown"
ADDRESS = r"https://[\w./:%?=&~+-]+"


def card(learner: Learner, shared: Mapping[str, Any], record: Record | None, origin: Origin) -> str:
    """The README.md of a learner on a hub; `shared` is its description there.

    Names are anybody's, so each is escaped for where it stands.
    """
    facts, scores = facts_of(learner, shared, record, origin), scores_of(record)
    return "\n".join(
        [
            "---", front_matter(learner, shared, record, origin).rstrip(), "---", "",
            f"# {markdown(title_of(shared))}", "",
            introduction(learner, shared), "",
            *table(("", ""), facts), "",
            "## Use", "", *code("python", usage(shared)), "",
            *needs(shared),
            "## Scores", "", *scores, "",
            "## Training", "", *training(record), "",
            f"Written by vlprompt {__version__}.", "",
        ]
    )  # fmt: skip


def method_of(shared: Mapping[str, Any]) -> About:
    """What the method's YAML says about it; of a description that names none its class alone."""
    return about("method", str(shared.get("method") or shared["target"].rpartition(".")[2]))


def title_of(shared: Mapping[str, Any]) -> str:
    on = f" on {shared['dataset']}" if shared.get("dataset") else ""
    return f"{method_of(shared).name}{on} ({backbone_of(shared)})"


def backbone_of(shared: Mapping[str, Any]) -> str:
    backbone = shared["backbone"]
    return f"{backbone['model']}, {backbone['weights']}"


def front_matter(learner: Learner, shared: Mapping[str, Any], record: Record | None, origin: Origin) -> str:
    """The metadata that a hub reads, as YAML."""
    license = {"license": origin.license} if origin.license else {"license": "other", "license_name": UNKNOWN}
    task = "image-classification" if learner.class_bound else "zero-shot-image-classification"
    names = [str(shared.get("method") or ""), str(shared.get("dataset") or "")]
    meta: dict[str, Any] = {**license, "library_name": "vlprompt", "pipeline_tag": task}
    meta |= {"base_model": origin.repository} if origin.repository else {}
    kinds = ["vlprompt", "clip" if learner.clip.text else "vit", "few-shot"]
    meta["tags"] = list(dict.fromkeys(filter(None, [*kinds, *map(terminal, names)])))
    if results := indexed(record):
        meta["model-index"] = [{"name": terminal(title_of(shared)), "results": results}]
    return yaml.safe_dump(meta, sort_keys=False, allow_unicode=True, width=10**6)


def indexed(record: Record | None) -> list[dict[str, Any]]:
    """The accuracies in the form of a hub's model index."""
    if record is None:
        return []
    return [
        {
            "task": {"type": "image-classification"},
            "dataset": {"type": terminal(record.dataset), "name": terminal(f"{record.dataset} ({split})")},
            "metrics": [{"type": "accuracy", "value": round(100 * float(of_split["accuracy"]), 2)}],
        }
        for split, of_split in record.scores.items()
        if "accuracy" in of_split
    ]


def introduction(learner: Learner, shared: Mapping[str, Any]) -> str:
    method = method_of(shared)
    paper = markdown(method.paper or "")
    if re.fullmatch(ADDRESS, method.source or ""):
        paper = f"[{paper or 'its source'}]({method.source})"
    n = sum(t.numel() for t in learner.state_dict().values())
    holds = f"the {n:,} trained numbers alone" if n else "its settings alone, as nothing is trained"
    backbone = markdown(backbone_of(shared))
    source = "with vlprompt" if shared["backbone"]["model"] in demo.BACKBONES else "from where it was published"
    return (
        f"{markdown(method.name)}{paper and f' ({paper})'} on a frozen {backbone}. This repository holds "
        f"{holds}; the backbone comes {source}."
    )


def facts_of(
    learner: Learner, shared: Mapping[str, Any], record: Record | None, origin: Origin
) -> list[tuple[str, str]]:
    names = first_names([markdown(name) for name in learner.trained_classes], MOST_CLASSES)
    trained = record is not None and record.shots != UNTRAINED
    known = origin.license if origin.license else "not known to vlprompt: see where it was published"
    facts: dict[str, Any] = {
        "data set": shared.get("dataset"),
        "hash of its split": shared.get("split_hash"),
        "protocol": shared.get("protocol"),
        "images a class": record.shots if trained and record else None,
        "seed": record.seed if trained and record else None,
        "precision": shared.get("precision"),
        "calibration": in_words(learner.calibration.told) if learner.calibration is not None else None,
        "adapted at test time, in the scores alone": shared.get("test_time"),
        "licence of the backbone": known,
    }
    rows = [(name, markdown(value)) for name, value in facts.items() if value is not None]
    return [*rows, (f"{len(learner.trained_classes):,} classes", names)]


def in_words(calibration: Mapping[str, Any]) -> str:
    """temperature, scale 1.23"""
    numbers = (f", {name} {value:.4g}" for name, value in calibration.items() if name != "name")
    return calibration["name"] + "".join(numbers)


def usage(shared: Mapping[str, Any]) -> list[str]:
    return [
        "import vlprompt",
        'model = vlprompt.load("hf://OWNER/NAME")  # this repository, or its folder',
        'model.predict(["a.jpg", "b.jpg"], top=5)  # (class, probability) pairs of each picture',
        "model.logits(pixels)  # of a batch [B, 3, H, W] of model.preprocess(image)",
        "model.classes",
    ]


def needs(shared: Mapping[str, Any]) -> list[str]:
    """What has to be allowed by whoever loads it."""
    module, model = str(shared["target"]).rpartition(".")[0], str(shared["backbone"]["model"])
    allowed = [] if module.startswith("vlprompt.") else [module]
    allowed += [model] if model.startswith("hf-hub:") else []
    if not allowed:
        return []
    text = f"It names what is no part of vlprompt; who trusts it sets VLPROMPT_ALLOW={','.join(allowed)}"
    return [f"{markdown(text)} first.", ""]


def scores_of(record: Record | None) -> list[str]:
    """A table of the record's scores, in percent and nats."""
    if record is None or not record.scores:
        return ["Not recorded here."]
    columns = [name for name in COLUMNS if any(name in of_split for of_split in record.scores.values())]
    rows = []
    for split, of_split in record.scores.items():
        n = record.n_classes.get(split)
        cells = [f"{METRICS[c].factor * of_split[c]:.{METRICS[c].decimals}f}" if c in of_split else "" for c in columns]
        rows.append((markdown(split), f"{of_split.get('total', '')}", "" if n is None else f"{n}", *cells))
    if record.headline:
        values = ", ".join(f"{markdown(name)} {100 * value:.2f}" for name, value in record.headline.items())
        return [*table(("test", "images", "classes", *columns), rows), "", f"Headline of the protocol: {values}."]
    return table(("test", "images", "classes", *columns), rows)


def training(record: Record | None) -> list[str]:
    if record is None:
        return ["Not recorded here."]
    changes = record.changes and without_folders(record.changes)
    again = command([record.model_copy(update={"config": {}, "changes": changes})])  # files by their names alone
    versions = ", ".join(f"{name} {record.versions[name]}" for name in ("vlprompt", "torch") if name in record.versions)
    made = [f"With {markdown(versions)}."] if versions else []
    return [*code("bash", [again]), *([""] if made else []), *made] if again else made or ["Not recorded here."]


def table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    line = "|".join("---" for _ in header)
    return [f"| {' | '.join(header)} |", f"|{line}|", *(f"| {' | '.join(row)} |" for row in rows)]


def code(language: str, lines: list[str]) -> list[str]:
    """A block of code, whatever is in it."""
    shown = [terminal(line) for line in lines]
    longest = max((len(run) for line in shown for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}{language}", *shown, fence]
