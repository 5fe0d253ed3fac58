"""Weights & Biases: one tracked run for each run, offline unless asked otherwise. Nothing else imports `wandb`."""

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlprompt.errors import UserError, unknown
from vlprompt.results.predictions import Predictions
from vlprompt.results.record import Record, RunKey

MODES = ("online", "offline", "disabled")
MAX_CONFUSION_CLASSES = 100  # W&B draws a table of at most 10,000 rows
SECONDS_TO_START, SECONDS_TO_FINISH = 30, 120  # online, where the network may be slow

logger = logging.getLogger(__name__)


class Tracker:
    """What a run reports to. If W&B fails it warns once and goes quiet: no result is lost for it."""

    def __init__(self, run: Any = None) -> None:
        self._run = run  # None: disabled, ended or failed
        self.where: str | None = run and (run.url or str(Path(run.dir).parent))  # its page; offline its folder

    def log(self, values: Mapping[str, float | int | None], step: int) -> None:
        """One point of the curves."""
        known = {name: value for name, value in values.items() if value is not None}
        self._try(lambda run: run.log(known, step=step))

    def finish(
        self, record: Record, predictions: Mapping[str, Predictions], classes: Mapping[str, Sequence[str]]
    ) -> None:
        """Final scores `<split>/<score>` and the headline; a confusion matrix of each split."""
        self._try(lambda run: _report(run, record, predictions, classes))

    def close(self, exit_code: int) -> None:
        """End the tracked run. A second call does nothing."""
        self._try(lambda run: run.finish(exit_code=exit_code))
        self._run = None

    def _try(self, action: Callable[[Any], object]) -> None:
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:
            logger.warning("Weights & Biases failed (%s): the run continues without it.", _first_line(error))
            run, self._run = self._run, None
            with contextlib.suppress(Exception):
                run.finish(exit_code=1)


def _report(
    run: Any, record: Record, predictions: Mapping[str, Predictions], classes: Mapping[str, Sequence[str]]
) -> None:
    import wandb

    scores = {f"{split}/{name}": v for split, of_split in record.scores.items() for name, v in of_split.items()}
    headline = {name: value for name, value in record.headline.items() if name not in record.scores}
    run.summary.update(scores | headline)
    for split in predictions.keys() & classes.keys():
        names = list(classes[split])
        if len(names) > MAX_CONFUSION_CLASSES:
            run.summary[f"{split}/confusion"] = f"not drawn: {len(names)} classes"
            continue
        labels, predicted = predictions[split].labels.tolist(), predictions[split].predicted.tolist()
        chart = wandb.plot.confusion_matrix(y_true=labels, preds=predicted, class_names=names, title=split)
        run.log({f"{split}/confusion": chart})


@contextlib.contextmanager
def track(mode: str | None, *, key: RunKey, config: Mapping[str, Any], folder: Path) -> Iterator[Tracker]:
    """Report one run to W&B; it is ended in every case, with exit code 1 where an exception passes.

    `mode` None: WANDB_MODE, else offline. `folder` is the results root; W&B writes below its `wandb/`.
    Raises: UserError where an online run cannot start; an offline one only warns.
    """
    mode = mode or os.environ.get("WANDB_MODE") or "offline"
    if mode not in MODES:
        raise unknown("wandb mode", mode, MODES)
    tracker = Tracker(None if mode == "disabled" else _start(mode, key, config, folder))
    try:
        yield tracker
    except BaseException:
        tracker.close(exit_code=1)
        raise
    tracker.close(exit_code=0)


def _start(mode: str, key: RunKey, config: Mapping[str, Any], folder: Path) -> Any:
    group = f"{key.protocol}-{key.dataset}-{key.backbone}-{key.learner}-shots{key.shots}"
    try:
        target = folder / "wandb"
        target.mkdir(parents=True, exist_ok=True)
        if not os.access(target, os.W_OK):  # W&B itself would turn to the system's temporary folder
            raise PermissionError(f"cannot write to '{target}'")
        os.environ.setdefault("WANDB_DATA_DIR", str(target.resolve()))  # else tables go to the home folder first

        import wandb

        wandb.setup(settings=_settings(silent=True))  # keeps it from asking for a key on the terminal
        return wandb.init(
            project=os.environ.get("WANDB_PROJECT", "vlprompt"),
            group=group,
            name=f"{group}-seed{key.seed}",
            job_type="train" if key.shots else "eval",
            config=json.loads(json.dumps(config, default=str)),  # mappings may have numbers as keys
            dir=folder,
            settings=_settings(
                mode=mode,
                silent=True,
                console="off",
                save_code=False,
                disable_git=True,
                x_disable_stats=True,
                x_disable_meta=True,  # the record says it, and collecting it costs time
                x_save_requirements=False,
                init_timeout=SECONDS_TO_START,
                finish_timeout=SECONDS_TO_FINISH,
            ),
        )
    except Exception as error:
        problem = _first_line(error)
        if mode == "online":
            raise UserError(
                f"Weights & Biases cannot start online ({problem}): run `wandb login` and check the network, "
                "or use wandb=offline."
            ) from error
        logger.warning("Weights & Biases cannot start (%s): the run continues without it.", problem)
        return None


def _settings(**wanted: Any) -> Any:
    """W&B's settings, without those that the installed version does not know."""
    import wandb

    known = wandb.Settings.model_fields
    return wandb.Settings(**{name: value for name, value in wanted.items() if name in known})


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
