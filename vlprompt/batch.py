"""Several runs in one process: what goes wrong in one becomes its record, and the others go on."""

import time
import traceback
from typing import Literal

from vlprompt.errors import ClassBoundError, UserError
from vlprompt.experiment import Experiment
from vlprompt.results.record import Record
from vlprompt.results.store import open_run

Errors = tuple[type[Exception], ...]


def attempt(experiment: Experiment, *, caught: Errors = (Exception,)) -> Record:
    """The finished record of a run, found or made; or, where one of the errors came, one that says why not."""
    start = time.perf_counter()
    try:
        return experiment.obtain()
    except caught as error:
        mistake = isinstance(error, UserError)
        if not mistake:
            traceback.print_exc()
        status: Literal["failed", "not_applicable"]
        status = "not_applicable" if isinstance(error, ClassBoundError) else "failed"
        record = Record(
            **experiment.key.model_dump(),
            status=status,
            reason=str(error) if mistake else f"{type(error).__name__}: {error}",
            config=experiment.config,
            config_hash=experiment.hash,
            cost={"train_seconds": time.perf_counter() - start},
        )
        with open_run(experiment.folder) as run:
            run.publish(record)
        return record
