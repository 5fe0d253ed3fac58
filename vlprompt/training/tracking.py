"""Weights & Biases: one tracked run for each run, offline unless asked otherwise. Nothing else imports `wandb`."""

import contextlib
import json
import logging
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pandas as pd

from vlprompt.config.about import about, display_name
from vlprompt.config.changes import words
from vlprompt.errors import UserError, unknown
from vlprompt.results.predictions import Predictions
from vlprompt.results.record import Record, RunKey

MODES = ("online", "offline", "disabled")
MAX_CONFUSION_CLASSES = 100  # W&B draws a table of at most 10,000 rows
SECONDS_TO_START, SECONDS_TO_FINISH = 30, 120  # online, where the network may be slow
LONGEST_NAME, LONGEST_TAG = 128, 64  # characters that W&B takes
SWEPT = ("protocol", "dataset", "backbone", "method", "shots")  # what a sweep is filtered by

logger = logging.getLogger(__name__)


class Tracker:
    """What a run reports to. If W&B fails it warns once and goes quiet: no result is lost for it."""

    def __init__(self, run: Any = None) -> None:
        self._run = run  # None: disabled, ended or failed
        self.where: str | None = run and (run.url or str(Path(run.dir).parent))  # its page; offline its folder

    def log(self, values: Mapping[str, float | int | None], epoch: int) -> None:
        """One point of the curves."""
        known = {f"train/{name}": value for name, value in values.items() if value is not None}
        self._try(lambda run: run.log({"epoch": epoch, **known}))

    def finish(
        self, record: Record, predictions: Mapping[str, Predictions], classes: Mapping[str, Sequence[str]]
    ) -> None:
        """Final scores `<split>/<score>`, the headline and `cost/<cost>`; a confusion matrix of each split."""
        self._try(lambda run: _report(run, record, predictions, classes))

    def table(self, key: str, cells: pd.DataFrame, summary: Mapping[str, int]) -> None:
        """A table, and numbers that stand next to it."""
        self._try(lambda run: _report_table(run, key, cells, summary))

    def fail(self, error: BaseException) -> None:
        """End the tracked run as failed, with its `reason`, as in the record."""
        self._try(lambda run: run.summary.update({"reason": _first_line(error)}))
        self.close(exit_code=1)

    def close(self, exit_code: int) -> None:
        """End the tracked run. A second call does nothing."""
        self._try(lambda run: _finish(run, exit_code))
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


def _finish(run: Any, exit_code: int) -> None:
    run.finish(exit_code=exit_code)
    for empty in ("tmp/code", "tmp"):
        with contextlib.suppress(OSError):
            (Path(run.dir).parent / empty).rmdir()


def _report(
    run: Any, record: Record, predictions: Mapping[str, Predictions], classes: Mapping[str, Sequence[str]]
) -> None:
    import wandb

    scores = {f"{split}/{name}": v for split, of_split in record.scores.items() for name, v in of_split.items()}
    headline = {name: value for name, value in record.headline.items() if name not in record.scores}
    costs = {f"cost/{name}": value for name, value in record.cost.items() if value is not None}
    run.summary.update(scores | headline | costs)
    for split in predictions.keys() & classes.keys():
        names = list(classes[split])
        if len(names) > MAX_CONFUSION_CLASSES:
            run.summary[f"{split}/confusion"] = f"not drawn: {len(names)} classes"
            continue
        labels, predicted = predictions[split].labels.tolist(), predictions[split].predicted.tolist()
        chart = wandb.plot.confusion_matrix(y_true=labels, preds=predicted, class_names=names, title=split)
        run.define_metric(f"{split}/confusion_table", hidden=True)  # what the chart is drawn from
        _log_table(run, f"{split}/confusion_table", chart.table, {f"{split}/confusion": chart})


def _log_table(run: Any, key: str, table: Any, logged: Mapping[str, Any]) -> None:
    """Log a table, or a chart of it, as a file of the run. W&B would add an artifact, whose copy of the table it leaves
    in a staging folder; a table that belongs to a run already gets none.
    """
    table.bind_to_run(run, key, run.step)
    run.log(dict(logged))


def _report_table(run: Any, key: str, cells: pd.DataFrame, summary: Mapping[str, int]) -> None:
    import wandb

    table = wandb.Table(dataframe=cells, allow_mixed_types=True)  # shots: 16, all
    _log_table(run, key, table, {key: table})
    run.summary.update(dict(summary))


@contextlib.contextmanager
def track(mode: str | None, *, key: RunKey, origin: Mapping[str, Any], folder: Path) -> Iterator[Tracker]:
    """Report one run to W&B; it is ended in every case, with exit code 1 where an exception passes.

    `mode` None: WANDB_MODE, else offline. `origin` are the fields of its record that are known before it begins.
    `folder` is the results root; W&B writes below its `wandb/`.
    Raises: UserError where an online run cannot start; an offline one only warns.
    """
    mode = resolve_mode(mode)
    group = "-".join((key.protocol, key.dataset, key.backbone, key.learner, f"shots{key.shots}"))
    named = {"group": group[:LONGEST_NAME], "name": f"{group}-seed{key.seed}"[-LONGEST_NAME:]}
    about = {"job_type": "train" if key.shots else "eval", "tags": tags(key), "config": plain_config(key, origin)}
    run = None if mode == "disabled" else _start(mode, folder, **named, **about)
    if run:
        run.define_metric("epoch", hidden=True)
        run.define_metric("train/*", step_metric="epoch")
    tracker = Tracker(run)
    try:
        yield tracker
    except BaseException as error:
        tracker.fail(error)
        raise
    tracker.close(exit_code=0)


def track_sweep(mode: str | None, table: pd.DataFrame, jobs: Mapping[str, int], *, name: str, folder: Path) -> None:
    """One more tracked run, of a whole sweep: its `table` of results, and how many of its jobs came to what.

    A sweep is done by then: where W&B fails, it warns.
    """
    shown = table.dropna(axis="columns", how="all").drop(columns=["variant", "changes"], errors="ignore")
    shown = shown.rename(columns={"named": "variant"})  # in words, not as a hash
    config = {column: sorted({str(value) for value in shown[column]}) for column in SWEPT if column in shown}
    try:
        mode, name = resolve_mode(mode), f"sweep-{name}"[:LONGEST_NAME]
        about = {"job_type": "sweep", "tags": ["sweep"], "config": config}
        tracker = Tracker(None if mode == "disabled" else _start(mode, folder, name=name, **about))
    except UserError as error:
        logger.warning("%s", error)
        return
    cells = shown.astype(object).where(shown.notna(), None)
    tracker.table("results", cells, {f"jobs/{status}": n for status, n in jobs.items()})
    tracker.close(exit_code=int("failed" in jobs))


def resolve_mode(mode: str | None) -> str:
    mode = mode or os.environ.get("WANDB_MODE") or "offline"
    if mode not in MODES:
        raise unknown("wandb mode", mode, MODES)
    return mode


def tags(key: RunKey) -> list[str]:
    family = about("method", key.method).family
    shots = ["all shots" if key.shots == "all" else f"{key.shots}-shot"] if key.shots else []
    names = dict.fromkeys([key.method, family, key.dataset, key.protocol, key.backbone, *shots])
    return [name[:LONGEST_TAG] for name in names if name]


def plain_config(key: RunKey, origin: Mapping[str, Any]) -> dict[str, Any]:
    """What people filter and group by, as plain keys; all settings, as composed, below `settings`."""
    settings = origin.get("config", {})
    variant = [settings.get("name"), words(origin.get("changes") or {})]
    in_words = ": ".join(filter(None, variant)) or key.variant
    plain = {
        **key.model_dump(),
        "learner": display_name(key.method, in_words),
        "variant": in_words or "default",
        "family": about("method", key.method).family,
        "recipe": ", ".join(origin.get("recipe", ())) or "none",
        **{name: origin.get(name) for name in ("weights", "precision", "config_hash", "split_hash", "git")},
        "machine": {"device": origin.get("device"), "cpus": os.cpu_count(), "system": platform.platform()},
        "versions": origin.get("versions", {}),
        "folder": "/".join(("runs", *key.folder_names)),
        "settings": settings,
    }
    return cast("dict[str, Any]", json.loads(json.dumps(plain, default=str)))  # mappings may have numbers as keys


def _start(mode: str, folder: Path, **of_run: Any) -> Any:
    try:
        target = folder / "wandb"
        target.mkdir(parents=True, exist_ok=True)
        if not os.access(target, os.W_OK):  # W&B itself would turn to the system's temporary folder
            raise PermissionError(f"cannot write to '{target}'")

        import wandb

        wandb.setup(settings=_settings(silent=True))  # keeps it from asking for a key on the terminal
        return wandb.init(
            project=os.environ.get("WANDB_PROJECT", "vlprompt"),
            dir=str(folder),  # wandb 0.19 takes no Path
            **of_run,
            settings=_settings(
                mode=mode,
                silent=True,
                console="off",
                save_code=False,
                disable_git=True,
                x_disable_stats=True,
                x_disable_meta=True,  # the configuration says it, and collecting it costs time
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


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
