"""Records made by hand, for tests of what is derived from them."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vlprompt.results.record import FILE, Record


def record(method: str, dataset: str = "dtd", seed: int = 1, **fields: Any) -> Record:
    """A finished run of base-to-novel; `base` and `novel` are its accuracies, without `base` there is no result."""
    base, novel = fields.pop("base", 0.8), fields.pop("novel", 0.6)
    scores = {} if base is None else {"base": {"accuracy": base}, "novel": {"accuracy": novel}}
    known = {"protocol": "base_to_novel", "backbone": "vit_b16", "weights": "openai", "precision": "bf16", "shots": 16}
    known |= {"status": "failed" if base is None else "finished", "scores": scores}
    return Record(method=method, dataset=dataset, seed=seed, **{**known, **fields})


def few_shot(method: str, dataset: str = "dtd", accuracy: float = 0.5, seed: int = 1, **fields: Any) -> Record:
    scores = {"test": {"accuracy": accuracy}}
    return record(method, dataset, seed, **{"protocol": "few_shot", "scores": scores, **fields})


def transfer(method: str, seed: int = 1, source: str = "imagenet", **accuracies: float) -> Record:
    scores = {name: {"accuracy": value} for name, value in accuracies.items()}
    return record(method, source, seed, protocol="cross_dataset", scores=scores)


def save(root: Path, records: Iterable[Record]) -> None:
    for one in records:
        folder = one.folder(root)
        folder.mkdir(parents=True)
        (folder / FILE).write_text(one.model_dump_json())
