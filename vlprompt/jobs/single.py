"""One job: a run, and the zero-shot run that it is compared with."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlprompt.config import known
from vlprompt.config.compose import as_asked, config_dirs, spec_of, zero_shot_reference
from vlprompt.config.paths import results_root
from vlprompt.errors import UserError

if TYPE_CHECKING:
    from vlprompt.config.spec import RunSpec
    from vlprompt.results.record import Record


def single_job(config: Any, overrides: list[str], choices: dict[str, Any]) -> None:
    """Run, or find the finished run, and show its table next to the zero-shot reference's.

    `config` as `compose.plain` gives it, the job's overrides, and the chosen names of groups.
    """
    from vlprompt.reports.endings import next_steps
    from vlprompt.reports.render import in_words
    from vlprompt.training.progress import Reporter

    note = known.note_of(config, choices, overrides, config_dirs())
    if records := [record for _, record in known.recall(note, as_asked(config, overrides))]:
        for record in records:
            Reporter().say(f"{record.folder(results_root())} is finished already (force=true runs it again)")
    else:
        records = run_with_reference(config, choices, overrides, note)
    Reporter().say(f"\n{in_words(records[::-1])}\n\n{next_steps(records[:1])}")


def run_with_reference(config: Any, choices: dict[str, Any], overrides: list[str], note: Path | None) -> list["Record"]:
    """The record of a run, and that of the zero-shot run it is compared with, if there is one."""
    from vlprompt.run import run
    from vlprompt.training.progress import Reporter

    spec = spec_of(config, choices, overrides)
    reference = zero_shot_reference(choices, overrides) if spec.trained else None
    runs = [(spec.folder, run(spec))]  # first: a mistake in it shows before the reference is computed
    try:
        if reference and is_comparable(reference):
            runs.append((reference.folder, run(reference)))
        if reference is None or len(runs) > 1:
            known.remember(note, spec, runs)
    except UserError as error:  # the run is finished all the same
        Reporter().say(f"there is no zero-shot row: {error}")
    return [record for _, record in runs]


def is_comparable(reference: "RunSpec") -> bool:
    """Whether the zero-shot run can be asked for; it says so where the backbone has no text."""
    from vlprompt.towers import has_text
    from vlprompt.training.progress import Reporter

    if has_text(model := reference.settings.backbone.model):
        return True
    Reporter().say(f"there is no zero-shot row: {model} has no text tower")
    return False
