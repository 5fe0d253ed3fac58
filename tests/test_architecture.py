"""Who may import what, and how large and how named the parts are."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from statistics import median

import pytest

import vlprompt

PACKAGE = Path(vlprompt.__file__).parent
FILES = {str(path.relative_to(PACKAGE)): path for path in sorted(PACKAGE.rglob("*.py"))}
LEARNERS = [
    name for name in FILES if name.startswith("learners/") and Path(name).stem not in ("base", "checks", "__init__")
]


@cache
def imports(name: str) -> tuple[str, ...]:
    """Absolute names of all that a file imports, wherever in it: vlprompt.data.dataset.Split, torch, ..."""
    return tuple(find_imports(name))


def find_imports(name: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = ("vlprompt", *Path(name).parts[:-1])[: 1 - node.level or None] if node.level else ()
            module = ".".join([*package, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def importers(library: str) -> set[str]:
    return {name for name in FILES for found in imports(name) if f"{found}.".startswith(f"{library}.")}


def reached(name: str) -> set[str]:
    """The files of the package that a file imports, and those that they import."""
    found, left = set(), [name]
    while left:
        if (file := left.pop()) not in found:
            found.add(file)
            parts = [dotted.split(".")[1:] for dotted in imports(file) if dotted.startswith("vlprompt.")]
            tried = ["/".join(part[:n]) for part in parts for n in range(1, len(part) + 1)]
            left += [path for stem in tried for path in (f"{stem}.py", f"{stem}/__init__.py") if path in FILES]
    return found


def test_the_readers_of_imports_see_them() -> None:
    assert {"vlprompt.data.dataset.Dataset", "numpy"} <= set(imports("demo/shapes.py"))  # the first is relative there
    assert {"vlprompt.towers.Clip", "torch"} <= set(imports("learners/coop.py"))
    assert {"learners/base.py", "towers/text.py", "errors.py"} <= reached("learners/coop.py")
    assert LEARNERS


TOP = ("settings.py", "run.py", "cli.py", "commands")
RUNS = ("session.py", "experiment.py", *TOP)
TRAINING = ("trainer.py", "fitting.py", "stacking.py", *RUNS)


@pytest.mark.parametrize(
    ("part", "forbidden"),
    [
        ("towers/", ("learners", "data", "protocols", *TRAINING)),
        ("learners/", ("protocols", *TRAINING)),
        ("protocols/", ("learners", "towers", *TRAINING)),
        ("data/", ("learners", "protocols", *TRAINING)),
        ("stacking.py", ("trainer.py", "fitting.py", "protocols", *RUNS)),
        ("trainer.py", ("fitting.py", *RUNS)),
        ("fitting.py", RUNS),
        ("session.py", ("run.py", "cli.py", "commands")),  # it names the experiment in its types alone
        ("experiment.py", ("run.py", "cli.py", "commands")),
        ("tables/", ("learners", "towers", *TRAINING)),
        ("published.py", ("learners", *TRAINING)),
    ],
)
def test_imports_run_one_way(part: str, forbidden: tuple[str, ...]) -> None:
    files = [name for name in FILES if name.startswith(part)]
    assert files
    wrong = {name: sorted(f for f in reached(name) if f.startswith(forbidden)) for name in files}
    assert not any(wrong.values()), {name: found for name, found in wrong.items() if found}


def test_protocols_and_sampling_reach_no_torch() -> None:
    files = [name for name in FILES if name.startswith("protocols/")] + ["data/dataset.py", "data/sampling.py"]
    assert not set().union(*map(reached, files)) & (importers("torch") | importers("torchvision"))


def test_borrowed_libraries_stay_where_they_belong() -> None:
    assert {name.split("/")[0] for name in importers("open_clip") | importers("timm")} == {"towers"}
    assert "run.py" in importers("hydra")
    assert importers("hydra") | importers("omegaconf") <= {"run.py", "cli.py"}
    assert importers("wandb") == {"tracking.py"}


def test_annotations_are_not_postponed() -> None:
    """Postponed ones would keep the shapes in them from being checked."""
    assert importers("__future__.annotations") == set()


def test_learners_are_small() -> None:
    lines = {name: len(FILES[name].read_text(encoding="utf-8").splitlines()) for name in LEARNERS}
    assert max(lines.values()) <= 150, lines
    assert median(lines.values()) <= 60, lines


def test_names_say_what_is_inside() -> None:
    vague = ("util", "helper", "manager", "wrapper", "misc")
    assert not [name for name in FILES if any(word in name for word in vague)]
