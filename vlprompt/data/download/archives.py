"""Archives unpacked so that nothing lands outside the folder, and nothing half done in it."""

import io
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO

from rich.filesize import decimal

from vlprompt.data.disk import check_space, sync, writing
from vlprompt.data.download.members import CHUNK, BadArchive, Harmful, Member, Opened, clean, reading
from vlprompt.data.download.reporting import SILENT, Reporter

EXPANSION = 20  # times the archive's size: photographs hardly shrink, tables up to tenfold
ALWAYS_ALLOWED = 2 << 30  # bytes
MOST_MEMBERS = 5_000_000
NESTED = "!"
FEW = 1000  # files that are brought to the disk one by one


def extract(
    archive: Path,
    into: Path,
    *,
    members: Mapping[str, str] | None = None,
    limit: int | None = None,
    reporter: Reporter = SILENT,
) -> None:
    """Unpack a zip or a tar (plain, gzip, bzip2, xz; known by content) into a folder that may hold other things.

    `members`: from a path within the archive to a path below `into`, "." being `into` itself; what is not named stays
    out. "a/inner.tar.gz!b" is b within an archive within the archive. None: everything as it is. Each destination
    (for "." and None each thing at the top) appears whole, and replaces what had its name.
    `limit`: bytes unpacked; None: 20 times the archive's, or 2 GiB where that is more.

    A link becomes a second name of the file it points to. Owners, permissions and times are not carried over, macOS's
    `__MACOSX` and `._*` stay out. One process at a time: whoever calls this holds a lock.

    Raises: BadArchive for a damaged archive, one without these members, or with one that is refused (`members.py`
    says which): the latter two before anything is written. UserError for a full disk.
    """
    members = {"": "."} if members is None else members
    real = Path(os.path.realpath(into))  # what is moved in one step stays within one file system
    draft = (real if os.path.ismount(real) else real.parent) / f".{real.name}.unpacking"
    with writing(f"'{into}'", "and run this again"):
        try:
            shutil.rmtree(draft, ignore_errors=True)  # of a killed run
            (draft / "new").mkdir(parents=True)
            _unpack(archive, str(archive), draft, members, limit, reporter)
            _publish(draft, real, {clean(target) for target in members.values()})
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def _unpack(
    archive: Path, title: str, draft: Path, members: Mapping[str, str], limit: int | None, reporter: Reporter
) -> None:
    """Everything that is asked for into draft/new; archives within this one pass through `draft`."""
    routes: dict[str, Path] = {}
    inner: dict[str, dict[str, str]] = {}
    with reading(archive, title) as (file, opened):
        for source, target in members.items():
            outer, nested, rest = source.partition(NESTED)
            if nested:
                inner.setdefault(clean(outer), {})[rest] = target
            else:
                routes[clean(source)] = draft / "new" / clean(target)
        routes |= {name: draft / f"{archive.name}.{number}" for number, name in enumerate(inner)}
        surveyed = _survey(file, opened, archive.name, limit, reporter)
        targets = _plan(title, surveyed, routes, draft / "new")
        links = _links(surveyed, targets)
    needed = sum(member.size for member in surveyed if member.name in targets)
    check_space(draft, needed, f"unpacking {archive.name}")
    with (
        reading(archive, title) as (_, opened),
        reporter.track(f"unpacking {archive.name}", needed, in_bytes=True) as track,
    ):
        for member, content in opened:
            if member.name in targets and member.kind != "link":
                _write(member, content, targets[member.name])
                track.advance(member.size)
    for name, file_name in links.items():
        _link(targets[name], targets[file_name])
    for name, wanted in inner.items():
        _unpack(routes[name], f"{title}{NESTED}{name}", draft, wanted, limit, reporter)
        routes[name].unlink()


def _survey(
    file: io.BufferedIOBase, opened: Iterator[Opened], name: str, limit: int | None, reporter: Reporter
) -> list[Member]:
    """All members, none of them harmful."""
    members: list[Member] = []
    packed, unpacked, position = os.fstat(file.fileno()).st_size, 0, 0
    most = max(EXPANSION * packed, ALWAYS_ALLOWED) if limit is None else limit
    with reporter.track(f"checking {name}", packed, in_bytes=True) as track:
        for member, _ in opened:
            unpacked += member.size
            if unpacked > most:
                raise Harmful(member.name, f"would make it more than {decimal(most)} unpacked")
            if len(members) == MOST_MEMBERS:
                raise Harmful(member.name, f"comes after {MOST_MEMBERS} others")
            members.append(member)
            track.advance(max(file.tell() - position, 0))
            position = max(file.tell(), position)
    return members


def _plan(title: str, members: list[Member], routes: Mapping[str, Path], root: Path) -> dict[str, Path]:
    """Where each member goes that is asked for. Raises: BadArchive where there is nothing under a route."""
    plan, used = {}, set()
    longest_first = sorted(routes, key=len, reverse=True)
    for member in members:
        name = member.name
        if any(part == "__MACOSX" or part.startswith("._") for part in name.split("/")):
            continue
        head = next((head for head in longest_first if not head or f"{name}/".startswith(f"{head}/")), None)
        if head is not None:
            used.add(head)
            rest = name[len(head) :].strip("/")
            if not rest and routes[head] == root and member.kind != "folder":
                rest = name.rpartition("/")[2]
            plan[name] = routes[head] / rest
    if absent := sorted(routes.keys() - used):
        tops = ", ".join(sorted({member.name.split("/")[0] for member in members})[:10])
        content = f"'{title}' holds {tops or 'nothing'}, but not '{absent[0] or '.'}'"
        raise BadArchive(f"{content}: it is not the expected archive.")
    return plan


def _links(members: list[Member], targets: Mapping[str, Path]) -> dict[str, str]:
    """The file that each link leads to, which has to be unpacked too. Raises: Harmful where there is none."""
    files = {member.name for member in members if member.kind == "file" and member.name in targets}
    pointers = {member.name: member.target for member in members if member.kind == "link"}
    links = {}
    for name in filter(targets.__contains__, pointers):
        target, steps = pointers[name], 0
        while target in pointers and steps < len(pointers):
            target, steps = pointers[target], steps + 1
        if target not in files:
            raise Harmful(name, f"is a link to {target!r}, which is no file that is unpacked with it")
        links[name] = target
    return links


def _write(member: Member, content: Callable[[], IO[bytes] | None], path: Path) -> None:
    with writing(f"'{member.name}'", "and run this again"):
        if member.kind == "folder":
            path.mkdir(parents=True, exist_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        source = content()
        if source is None:
            raise Harmful(member.name, "has no content")
        with source, path.open("wb") as file:
            shutil.copyfileobj(source, file, CHUNK)


def _link(path: Path, target: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(target, path)
    except OSError:  # not on this file system
        if not path.exists():
            shutil.copyfile(target, path)


def _publish(draft: Path, into: Path, targets: set[str]) -> None:
    """Move what is unpacked to where it belongs: a folder that is there is complete, after a power cut, too."""
    _settle(draft / "new")
    if "" in targets:
        targets = {child.name for child in (draft / "new").iterdir()}
    into.mkdir(exist_ok=True)
    (draft / "old").mkdir()
    for number, name in enumerate(sorted(targets)):
        new, path, old = draft / "new" / name, into / name, draft / "old" / str(number)
        if not new.exists():  # moved with what holds it
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir() or (new.is_dir() and os.path.lexists(path)):
            path.rename(old)  # a folder cannot be replaced in one step
        try:
            new.replace(path)
        except OSError:
            with suppress(OSError):
                old.rename(path)
            raise
        sync(path.parent)


def _settle(folder: Path) -> None:
    """Have all files below a folder on the disk itself."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    if len(paths) > FEW and hasattr(os, "sync"):
        os.sync()  # of the whole machine; one by one, a disk takes some milliseconds for each
    else:
        for path in paths:
            sync(path)
