"""Where stopped trainings stand, from the headers of their states alone."""

import json
from pathlib import Path

import safetensors

from vlprompt.results.store import DRAFT, STATE, draft_of, has_state, holder
from vlprompt.textfiles import ordinary


def position(target: Path) -> str | None:
    """How far the stopped training of a run is: step 5 of 60. None where there is none, or it is under way."""
    folder = next(filter(has_state, (draft_of(target), target)), None)  # that of a failed run lies with its record
    if folder is None or holder(target):
        return None
    try:
        with safetensors.safe_open(ordinary(folder / STATE), "np") as file:
            about = json.loads((file.metadata() or {})["about"])
        return f"step {int(about['step']):,} of {int(about['total']):,}"
    except (OSError, safetensors.SafetensorError, ValueError, LookupError, RecursionError, TypeError):
        return None  # the run starts anew


def stopped_runs(root: Path) -> dict[Path, str]:
    """The runs below a folder that were stopped in their training, and how far they are."""
    drafts = sorted(path.parent for path in root.rglob(f".*/{STATE}"))
    targets = [path.with_name(name[1]) for path in drafts if (name := DRAFT.fullmatch(path.name))]
    return {target: text for target in targets if (text := position(target))}
