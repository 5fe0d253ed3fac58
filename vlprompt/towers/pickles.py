"""The pickles in PyTorch's files, looked at before anything reads them."""

import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from vlprompt.errors import UserError

MOST = 2 * 10**6  # instructions; ViT-B with the state of its optimiser has 40,000
MOST_TUPLES = 10**5
LEGACY = 5  # pickles at the start of a file that is no archive: magic number, version, system, content, names
ZIP = b"PK\x03\x04"


def check_pickles(path: Path) -> None:
    """Refuse what would end the process instead of raising an error: tuples within tuples overflow the stack of C.

    Raises:
        UserError: a file with more objects than tensors need. Damaged files pass, and are found so when they are read.
    """
    count = tuples = 0
    try:
        for stream in streams(path):
            for opcode, _, _ in pickletools.genops(stream):
                count, tuples = count + 1, tuples + opcode.name.startswith("TUPLE")
                if count > MOST or tuples > MOST_TUPLES:
                    raise UserError(f"{path} has more objects than tensors need, and was not read: get another file")
    except UserError:
        raise
    except Exception:  # as many as there are ways to damage a file
        return


def streams(path: Path) -> Iterator[IO[bytes]]:
    """Where pickles start, one after the other."""
    with path.open("rb") as file:
        zipped = file.read(len(ZIP)) == ZIP  # as torch tells, whatever follows
    if zipped:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.filename.endswith(".pkl"):
                    with archive.open(entry) as stream:
                        yield stream
    else:
        with path.open("rb") as file:
            for _ in range(LEGACY):
                yield file
