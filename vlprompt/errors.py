"""Errors that a user can mend. Each message is one sentence or two: what, got, allowed, do."""

import difflib
import io
import os
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path


class UserError(Exception):
    """A mistake in what was asked for: shown as its message alone, without a traceback, with exit code 2."""


class DamagedError(UserError):
    """A file of a run is not what was written: the run is left out, the others stand."""


class NotApplicableError(UserError):
    """A method, its settings, a protocol and a backbone that do not go together."""


class ClassBoundError(NotApplicableError):
    """A learner that owns one parameter per class was asked for classes it was not trained on."""


class OverriddenError(NotApplicableError):
    """A setting was given that another one leaves without effect."""


class ChoiceError(UserError):
    """A group of settings (method, dataset, ...) was given a choice that it does not have."""


class UnknownSettingError(UserError):
    """A setting that the chosen method, data set, ... do not have, though others may."""

    def __init__(self, message: str, name: str = "", known: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.name, self.known = name, known  # dotted, as on the command line


class InUseError(UserError):
    """A run that another process is making, where nobody wanted to wait for it."""

    def __init__(self, message: str, folder: Path) -> None:
        super().__init__(message)
        self.folder = folder  # of the run


class NonFiniteError(UserError):
    """A loss or a gradient became NaN or infinite."""


def unknown(kind: str, got: object, known: Iterable[str], *, do: str = "", most: int | None = None) -> UserError:
    """A `UserError` for a name that is not known: the known ones are listed, the nearest one is proposed.

    Of more than `most` names only the nearest are listed, and `do` says how to see all.
    """
    names = sorted(known)
    if most is None or len(names) <= most:
        return UserError(_unknown(kind, got, names, do if most is None else ""))
    near = difflib.get_close_matches(str(got), names, n=most, cutoff=0)
    return UserError(_unknown(kind, got, near, do, f" and {len(names) - most} more"))


def unknown_setting(name: str, known: Iterable[str]) -> UnknownSettingError:
    """`unknown` for a setting by its dotted name."""
    names = sorted(known)
    return UnknownSettingError(_unknown("setting", name, names), name, names)


def _unknown(kind: str, got: object, names: Sequence[str], do: str = "", more: str = "") -> str:
    near = difflib.get_close_matches(str(got), names, n=1)
    guess = f"; did you mean '{near[0]}'?" if near else "."
    return f"unknown {kind} '{got}': known are {', '.join(names) or 'none'}{more}{guess}{' ' + do if do else ''}"


def first_names(names: Sequence[str], most: int = 10) -> str:
    """A list for a message: the first `most` names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


class Note(str):
    """A note on one of several things; `pattern` has {} instead of its name. See `folded`."""

    pattern: str
    name: str

    def __new__(cls, pattern: str, name: object) -> "Note":
        note = super().__new__(cls, pattern.replace("{}", str(name), 1))
        note.pattern, note.name = pattern, str(name)
        return note

    def __reduce__(self) -> tuple[type["Note"], tuple[str, str]]:  # to be copied
        return Note, (self.pattern, self.name)


def folded(notes: Iterable[str]) -> list[str]:
    """Each note once, and those of one pattern as one: how many there are, and the first names."""
    of_pattern: dict[str, list[str]] = {}
    for note in dict.fromkeys(notes):
        of_pattern.setdefault(note.pattern if isinstance(note, Note) else note, []).append(note)
    return [
        same[0] if len(same) == 1 else f"{len(same)} times: {_of_several(pattern, same)}"
        for pattern, same in of_pattern.items()
    ]


def _of_several(pattern: str, notes: Sequence[str]) -> str:
    names = [note.name for note in notes if isinstance(note, Note)]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    separator = "; " if any(", " in name for name in names) else ", "
    return pattern.replace("{}", separator.join(names[:3]) + more, 1)


def prepare_streams(arguments: Iterable[str] = ()) -> None:
    """Make the output take any text, whatever its encoding: what it cannot show is escaped, as in \\xb1.

    Raises: UserError for an argument that this locale cannot read, which no record could hold.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    for text in arguments:
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise UserError(f"{text} is no text in the encoding of this locale: set PYTHONUTF8=1, or LC_ALL=C.UTF-8")


def drop_output() -> None:
    """Write the rest of the output to nowhere, as its reader has gone: `vlprompt table | head`."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def printable(text: str) -> str:
    """A text for the terminal: escape sequences and marks that reorder text show as what they are, \\x1b or \\u202e."""

    def harmless(character: str) -> bool:  # joiners belong to the spelling of Persian and Hindi
        return character in "\n\t\u200c\u200d" or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp")

    return "".join(c if harmless(c) else c.encode("unicode_escape").decode() for c in text)
