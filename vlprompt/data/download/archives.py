"""Archives unpacked so that nothing lands outside the folder, and nothing half done in it."""

import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO

from rich.filesize import decimal

from vlprompt.data.disk import check_space, locked, writing
from vlprompt.data.download.members import CHUNK, Archive, Member, Refused, clean, reading
from vlprompt.errors import UserError
from vlprompt.training.progress import Reporter

EXPANSION = 20  # times the archive's size: photographs hardly shrink, tables up to tenfold
ALWAYS_ALLOWED = 2 << 30  # bytes
MOST_MEMBERS = 5_000_000
NESTED = "!"


def extract(
    archive: Path,
    into: Path,
    *,
    members: Mapping[str, str] | None = None,
    limit: int | None = None,
    reporter: Reporter | None = None,
) -> None:
    """Unpack a zip or a tar (plain, gzip, bzip2, xz; known by content) into a folder that may hold other things.

    `members`: from a path within the archive to a path below `into`, "." being `into` itself; what is not named stays
    out. "a/inner.tar.gz!b" is b within an archive within the archive. None: everything as it is. Each destination
    (for "." and None each thing at the top) appears whole, and replaces what had its name.
    `limit`: bytes unpacked; None: 20 times the archive's, or 2 GiB where that is more.

    A link becomes a second name of the file it points to. Owners, permissions and times are not carried over, macOS's
    `__MACOSX` and `._*` stay out. Parallel runs unpack one after the other.

    Raises: UserError for a damaged archive, a full disk, or a member that is refused (`members.py` says which): this
    before anything is written.
    """
    reporter = reporter or Reporter()
    real = Path(os.path.realpath(into))  # what is moved in one step stays within one file system
    beside = real if os.path.ismount(real) else real.parent
    draft = beside / f".{real.name}.unpacking"
    waiting = f"{archive.name}: waiting for another process that unpacks into '{into}'"
    with writing(f"'{into}'", "and run this again"):
        beside.mkdir(parents=True, exist_ok=True)
        with locked(beside / f"{draft.name}.lock", lambda: reporter.say(waiting)):
            try:
                shutil.rmtree(draft, ignore_errors=True)  # of a killed run: a living one would hold the lock
                (draft / "new").mkdir(parents=True)
                _unpack(Archive(archive, str(archive)), draft, members, limit=limit, reporter=reporter)
                _place(draft, real, members)
            finally:
                shutil.rmtree(draft, ignore_errors=True)


def unpacked_size(archive: Path) -> int:
    """Bytes of all files in an archive; archives within it count as they are. A compressed tar is read whole for it.

    Raises: UserError as `extract` does.
    """
    return sum(member.size for member in _survey(Archive(archive, str(archive)), limit=None, reporter=Reporter()))


def _survey(archive: Archive, *, limit: int | None, reporter: Reporter) -> list[Member]:
    """All members, none of them harmful."""
    found: list[Member] = []
    with reading(archive) as (file, opened):
        packed, unpacked = os.fstat(file.fileno()).st_size, 0
        most = max(EXPANSION * packed, ALWAYS_ALLOWED) if limit is None else limit
        with reporter.track(f"checking {archive.name}", packed, in_bytes=True) as track:
            for member, _ in opened:
                unpacked += member.size
                if unpacked > most:
                    raise Refused(member.name, f"would make it more than {decimal(most)} unpacked")
                if len(found) == MOST_MEMBERS:
                    raise Refused(member.name, f"comes after {MOST_MEMBERS} others")
                found.append(member)
                track.advance(max(file.tell() - track.done, 0))
    return found


def _unpack(
    archive: Archive, draft: Path, members: Mapping[str, str] | None, *, limit: int | None, reporter: Reporter
) -> None:
    """Everything that is asked for into draft/new; archives within this one pass through `draft`."""
    found = _survey(archive, limit=limit, reporter=reporter)
    inner = _nested(members or {})
    plain = None if members is None else {name: place for name, place in members.items() if NESTED not in name}
    places = {name: draft / "new" / place for name, place in _plan(archive, found, plain).items()}
    passing = {name: draft / f"{archive.path.name}.{number}" for number, name in enumerate(inner)}
    places |= {member: passing[name] for name in inner for member in _plan(archive, found, {name: "."})}
    links = _links(archive, found, places)
    needed = sum(member.size for member in found if member.name in places)
    check_space(draft, needed, f"unpacking {archive.name}")
    with (
        reading(archive) as (_, opened),
        reporter.track(f"unpacking {archive.name}", needed, in_bytes=True) as track,
    ):
        for member, content in opened:
            if member.name in places and member.kind != "link":
                _write(member, content, places[member.name])
                track.advance(member.size)
    for name, target in links.items():
        _link(places[name], places[target])
    for name, wanted in inner.items():
        _unpack(
            Archive(passing[name], f"{archive.called}{NESTED}{name}"), draft, wanted, limit=limit, reporter=reporter
        )
        passing[name].unlink()


def _nested(members: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """What is asked for of each archive within the archive."""
    inner: dict[str, dict[str, str]] = {}
    for prefix, place in members.items():
        name, nested, rest = prefix.partition(NESTED)
        if nested:
            inner.setdefault(name, {})[rest] = place
    return inner


def _plan(archive: Archive, found: list[Member], members: Mapping[str, str] | None) -> dict[str, str]:
    """Names of members that are asked for, and their places. Raises: UserError where there is nothing under one."""
    routes = {clean(prefix): clean(place) for prefix, place in ({"": "."} if members is None else members).items()}
    longest_first = sorted(routes, key=len, reverse=True)
    plan, met = {}, set()
    for member in found:
        name = member.name
        if any(part == "__MACOSX" or part.startswith("._") for part in name.split("/")):
            continue
        head = next((head for head in longest_first if not head or f"{name}/".startswith(f"{head}/")), None)
        if head is not None:
            met.add(head)
            rest = name[len(head) :].strip("/")
            if not rest and not routes[head] and member.kind != "folder":
                rest = name.rpartition("/")[2]
            plan[name] = "/".join(filter(None, (routes[head], rest)))
    if absent := sorted(routes.keys() - met):
        tops = ", ".join(sorted({member.name.split("/")[0] for member in found})[:10])
        held = f"'{archive.called}' holds {tops or 'nothing'}, but not '{absent[0] or '.'}'"
        raise UserError(f"{held}: it is not the expected archive.")
    return plan


def _links(archive: Archive, found: list[Member], places: Mapping[str, Path]) -> dict[str, str]:
    """The file that each link leads to, which has to be unpacked too. Raises: UserError where there is none."""
    files = {member.name for member in found if member.kind == "file" and member.name in places}
    targets = {member.name: member.target for member in found if member.kind == "link"}
    links = {}
    for name in filter(places.__contains__, targets):
        target, steps = targets[name], 0
        while target in targets and steps < len(targets):
            target, steps = targets[target], steps + 1
        if target not in files:
            raise Refused(name, f"is a link to {target!r}, which is no file that is unpacked with it").of(archive)
        links[name] = target
    return links


def _write(member: Member, content: Callable[[], IO[bytes] | None], place: Path) -> None:
    with writing(f"'{member.name}'", "and run this again"):
        if member.kind == "folder":
            place.mkdir(parents=True, exist_ok=True)
            return
        place.parent.mkdir(parents=True, exist_ok=True)
        source = content()
        if source is None:
            raise Refused(member.name, "has no content")
        with source, place.open("wb") as file:
            shutil.copyfileobj(source, file, CHUNK)


def _link(place: Path, target: Path) -> None:
    with writing(f"'{place.name}'", "and run this again"):
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(target, place)
        except OSError:  # not on this file system
            if not place.exists():
                shutil.copyfile(target, place)


def _place(draft: Path, into: Path, members: Mapping[str, str] | None) -> None:
    """Move what is unpacked to where it belongs."""
    places = {clean(place) for place in (members or {"": "."}).values()}
    if "" in places:
        places = {child.name for child in (draft / "new").iterdir()}
    into.mkdir(exist_ok=True)
    (draft / "old").mkdir()
    for number, place in enumerate(sorted(places)):
        new, target, old = draft / "new" / place, into / place, draft / "old" / str(number)
        if not new.exists():  # moved with what holds it
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir() or (new.is_dir() and os.path.lexists(target)):
            target.rename(old)  # a folder cannot be replaced in one step
        try:
            new.replace(target)
        except OSError:
            with suppress(OSError):
                old.rename(target)
            raise
