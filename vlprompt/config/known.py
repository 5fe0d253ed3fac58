"""Commands whose runs are known to be finished, so that these are found without torch and without a learner.

What a command came to is noted under a hash of all that decides which runs it asks for. A note alone decides nothing:
the data are listed again, and the records and their files are held against their checksums.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlprompt.config.datasets import load_datasets
from vlprompt.config.paths import PACKAGE, config_dir, results_root
from vlprompt.config.schema import read_settings
from vlprompt.data.dataset import Dataset
from vlprompt.data.disk import whole_file
from vlprompt.errors import UserError
from vlprompt.results.record import Record, versions
from vlprompt.results.store import finished_run, tidy
from vlprompt.textfiles import ordinary

if TYPE_CHECKING:
    from vlprompt.config.spec import RunSpec

FOLDER = Path("runs", ".known")
MOST_BYTES = 10**6  # of a note
BY_CONTENT = ("backbone", "method", "sampler")  # settings that may name files, whose content then counts
Runs = list[tuple[Path, Record]]


def note_of(
    config: Mapping[str, Any], choices: Mapping[str, Any], overrides: Sequence[str], folders: Sequence[Path]
) -> Path | None:
    """Where the note on a command lies, whose configuration is composed from these folders; None: it gets none."""
    targets = [text for name, text in leaves(config) if name == "_target_"]
    if config.get("force") or not all(text.startswith("vlprompt.") for text in targets):
        return None  # the code of others may change unseen
    if set(folders) != {config_dir()}:  # those of others may be large
        return None
    texts = [text for name in BY_CONTENT for _, text in leaves(config.get(name))]
    decides = {
        "asked": [config, choices, overrides],
        "code": [state for folder in (PACKAGE, config_dir()) for state in states(folder.rglob("*"))],
        "files": [state for text in texts for state in states(files_at(text))],
        "versions": versions(),
        "machine": [str(Path.cwd()), str(results_root().absolute()), *sorted(map(str, Path("/dev").glob("nvidia*")))],
        "environment": sorted(pair for pair in os.environ.items() if pair[0].startswith(("VLPROMPT", "CUDA"))),
    }
    text = json.dumps(decides, sort_keys=True, default=str)
    return results_root() / FOLDER / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """The texts in a configuration, and the name of each."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from leaves(inner, str(key))
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner, name)
    elif isinstance(value, str):
        yield name, value


def files_at(text: str) -> list[Path]:
    """The file that a text names, or the files of the folder; none where it is no path."""
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        path = Path(text).expanduser()
        return sorted(path.iterdir()) if path.is_dir() else [path]
    return []


def states(paths: Iterator[Path] | Sequence[Path]) -> list[tuple[str, int, int]]:
    """Path, size and time of the last change of those that are files, in order."""
    files = []
    for path in paths:
        with contextlib.suppress(OSError):
            if path.is_file() and path.suffix != ".pyc":
                files.append((str(path), path.stat().st_size, path.stat().st_mtime_ns))
    return sorted(files)


def recall(note: Path | None, config: Mapping[str, Any]) -> Runs:
    """The finished runs of a command, the one that was asked for first; none where one of them is not known to be."""
    if note is None:
        return []
    runs = Runs()
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, UserError):
        noted = json.loads(ordinary(note, MOST_BYTES).read_text(encoding="utf-8"))
        if noted["splits"] != splits_of(*load_datasets(read_settings(config))):
            return []
        for name, config_hash in noted["runs"]:
            record = finished_run(Path(name), lambda record: True)
            if record is None or record.config_hash != config_hash:
                return []
            runs.append((Path(name), record))
        for folder, _ in runs:
            tidy(folder.parent)
        return runs
    return []


def remember(note: Path | None, spec: "RunSpec", runs: Runs) -> None:
    """Note that these are the finished runs of a command; not where that cannot be written."""
    if note is None:
        return
    noted = {
        "splits": splits_of(spec.dataset, spec.others),
        "runs": [[str(folder.absolute()), record.config_hash] for folder, record in runs],
    }
    with contextlib.suppress(OSError), whole_file(note, lasting=False) as draft:
        draft.write_text(json.dumps(noted), encoding="utf-8")


def splits_of(dataset: Dataset, targets: Mapping[str, Dataset]) -> dict[str, str]:
    """What the data sets of a run hold."""
    return {name: one.fingerprint() for name, one in {"": dataset, **targets}.items()}
