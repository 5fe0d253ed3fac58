"""The only place where an exception becomes a failed record."""

import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from vlprompt.config.paths import results_root
from vlprompt.errors import InUseError, NotApplicableError, UserError

if TYPE_CHECKING:
    from vlprompt.config.spec import RunSpec
    from vlprompt.results.record import Record

Errors = tuple[type[Exception], ...]


def run_or_record_failure(
    asked: "RunSpec | Callable[[], RunSpec]",
    *,
    key: Mapping[str, Any] = MappingProxyType({}),
    config: Mapping[str, Any] = MappingProxyType({}),
    caught: Errors = (Exception,),
    wait: bool = True,
    since: datetime | None = None,
) -> "Record":
    """The record of a run, or, if one of the exceptions in `caught` is raised, a failed record with the reason.

    `asked` may be a function that reads the run; `key` and `config` are for one that cannot be read. What another
    process tried in vain after `since` is not tried once more.

    Raises:
        InUseError: another process is making it, and `wait` is false.
    """
    from vlprompt.config.spec import UNRECORDED
    from vlprompt.run import run

    spec, start = None, time.perf_counter()
    try:
        spec = asked() if callable(asked) else asked
        return tried_in_vain(spec, since) or run(spec, wait=wait)
    except InUseError:
        raise
    except caught as error:
        is_mistake = isinstance(error, UserError)
        if not is_mistake:
            traceback.print_exc()
        fields: dict[str, Any] = {
            "status": "not_applicable" if isinstance(error, NotApplicableError) else "failed",
            "reason": str(error) if is_mistake else f"{type(error).__name__}: {error}",
            "cost": {"train_seconds": time.perf_counter() - start},
        }
        if spec is not None:
            fields |= described(spec)
        else:
            fields |= {**key, "config": {name: value for name, value in config.items() if name not in UNRECORDED}}
        return write_failure(fields, spec.folder if spec else None)


def described(spec: "RunSpec") -> dict[str, Any]:
    """What the record of a run that did not finish says of it, so that it is of its seeds' row."""
    about = {"config": spec.config, "config_hash": spec.hash, "changes": spec.changes, "precision": spec.precision}
    return {**spec.key.model_dump(), **about}


def tried_in_vain(spec: "RunSpec", since: datetime | None) -> "Record | None":
    """The record of a run that was tried after `since` and did not finish."""
    from vlprompt.results.store import stored_run

    if since is None or spec.settings.force:
        return None
    with suppress(UserError):
        record = (stored_run(spec.folder) or (None, None))[1]
        if record and record.status != "finished" and record.config_hash == spec.hash:
            return record if datetime.fromisoformat(record.created) > since else None
    return None


def write_failure(fields: Mapping[str, Any], folder: Path | None) -> "Record":
    """Leave the record of a run that did not finish, if its key is a valid one."""
    from vlprompt.results.record import Record
    from vlprompt.results.store import open_run

    try:
        record = Record(**{"weights": (fields["config"].get("backbone") or {}).get("weights"), **fields})
        with open_run(folder or record.folder(results_root()), wait=False) as run:
            run.write(lambda: run.publish(record))
    except (ValueError, UserError):  # a value that no run can have, a name that no folder can, or another has begun it
        return Record.model_construct(**fields)
    return record
