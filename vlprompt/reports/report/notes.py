"""Notes as the page has them: learners and averages by their names in print, those of one kind as one."""

import re
from collections.abc import Iterable

from vlprompt.config.about import display_name, paths
from vlprompt.errors import Note, folded

AVERAGE = re.compile(r"\baverage_(\d+)(_targets)?\b")  # as averages are called in tables


def in_print(notes: Iterable[str]) -> list[str]:
    methods = paths("method")

    def named(note: str) -> str:
        learner = isinstance(note, Note) and note.name.partition("@")[0] in methods
        return Note(note.pattern, display_name(note.name)) if isinstance(note, Note) and learner else note

    return [averages_in_words(re.sub("^average_", "The average_", note)) for note in folded(map(named, notes))]


def averages_in_words(text: str) -> str:
    """Names such as average_2_targets as "average of 2 targets"; all else as it is."""
    return AVERAGE.sub(lambda match: f"average of {match[1]}{' targets' if match[2] else ''}", text)
