"""Folders that appear whole or not at all: what every export writes into."""

import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vlprompt.data.disk import draft_of, is_left_behind, make_folder, sync, writing
from vlprompt.errors import UserError


@contextmanager
def whole_folder(folder: Path, names: Iterable[str], *, force: bool) -> Iterator[Path]:
    """An empty draft of a folder, whose files all move into `folder` at the end, or none of them.

    `names`: files that may come. Those that lie in `folder` from before are replaced or deleted, if `force` says so;
    others stay.

    Raises:
        UserError: files of these names, without `force`; a folder that cannot be written, or a full disk.
    """
    with writing(f"'{folder}'", "and try again"):
        _refuse_to_replace(folder, names, force)
        room = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
        for left in room.glob(".*"):
            if left.is_dir() and is_left_behind(left):
                shutil.rmtree(left, ignore_errors=True)
        draft = draft_of(room / (folder.name or "files"))
        draft.mkdir()
        try:
            (draft / "plain").touch()
            mode = (draft / "plain").stat().st_mode  # of a new file, which some libraries do not give theirs
            (draft / "plain").unlink()
            yield draft
            _refuse_to_replace(folder, sorted(path.name for path in draft.iterdir()), force)
            for path in draft.iterdir():
                path.chmod(mode)
                sync(path)
            make_folder(folder)
            for old in {folder / name for name in names} - {folder / path.name for path in draft.iterdir()}:
                old.unlink(missing_ok=True)
            for path in sorted(draft.iterdir()):
                path.replace(folder / path.name)
            sync(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def _refuse_to_replace(folder: Path, names: Iterable[str], force: bool) -> None:
    if os.path.lexists(folder) and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    there = [name for name in names if os.path.lexists(folder / name)]
    if there and not force:
        raise UserError(f"{folder} holds {' and '.join(there)}: --force replaces them, or choose another folder")
    if folders := [name for name in there if (folder / name).is_dir() and not (folder / name).is_symlink()]:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(folder / folders[0]))
