"""Which room may import which, and how large and how named the parts are."""

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from statistics import median

import pytest

import vlprompt

PACKAGE = Path(vlprompt.__file__).parent
FILES = {str(path.relative_to(PACKAGE)): path for path in sorted(PACKAGE.rglob("*.py"))}
NO_METHODS = ("base", "head", "checks", "__init__")
LEARNERS = [name for name in FILES if name.startswith("learners/") and Path(name).stem not in NO_METHODS]
FLOORS = [
    {"errors", "textfiles", "__init__"},
    {"towers"},
    {"data", "demo", "learners", "protocols"},
    {"inference"},
    {"config", "results", "training"},
    {"train", "evaluate"},
    {"run"},
    {"reports", "interop", "interpret"},
    {"sweep", "api", "jobs"},
    {"estimator"},
    {"tuning", "explain"},
    {"commands"},
    {"cli"},
]
"""From the ground up: a room imports its own floor and what is below."""


@cache
def imports(name: str) -> tuple[str, ...]:
    """Absolute names of all that a file imports, wherever in it: vlprompt.data.dataset.Split, torch, ..."""
    return tuple(find_imports(ast.parse(FILES[name].read_text(encoding="utf-8")), name))


def find_imports(node: ast.AST, name: str) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            package = ("vlprompt", *Path(name).parts[:-1])[: 1 - child.level or None] if child.level else ()
            module = ".".join([*package, *([child.module] if child.module else [])])
            yield from (f"{module}.{alias.name}" for alias in child.names)
        elif not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from find_imports(child, name)


def importers(library: str) -> set[str]:
    return {name for name in FILES for imported in imports(name) if f"{imported}.".startswith(f"{library}.")}


@cache
def files_imported(name: str) -> frozenset[str]:
    """The files of the package that a file imports; `from package import module` is the module."""
    files = set()
    for dotted in imports(name):
        parts = dotted.split(".")[1:]
        paths = [f"{'/'.join(parts[:n])}{end}" for n in range(len(parts), 0, -1) for end in (".py", "/__init__.py")]
        if dotted.startswith("vlprompt.") and (path := next((path for path in paths if path in FILES), None)):
            files.add(path)
    return frozenset(files - {name})


def reached(name: str) -> set[str]:
    """The files of the package that a file imports, and those that they import."""
    files, left = set(), [name]
    while left:
        if (file := left.pop()) not in files:
            files.add(file)
            left += files_imported(file)
    return files


def floor(name: str) -> int:
    room = Path(name).parts[0].removesuffix(".py")
    return next(i for i, rooms in enumerate(FLOORS) if room in rooms)


def test_the_readers_of_imports_see_them() -> None:
    assert {"vlprompt.data.dataset.Dataset", "numpy"} <= set(imports("demo/shapes.py"))  # the first is relative there
    assert {"learners/base.py", "towers/text.py", "errors.py"} <= reached("learners/coop.py")
    assert "vlprompt.run.run" in imports("jobs/single.py")  # within a function
    assert floor("towers/clip.py") < floor("run.py") < floor("sweep.py")
    assert LEARNERS


@pytest.mark.parametrize("name", FILES)
def test_imports_run_downwards(name: str) -> None:
    assert not [file for file in files_imported(name) if floor(file) > floor(name)]


def test_there_is_no_circle() -> None:
    try:
        TopologicalSorter({name: files_imported(name) for name in FILES}).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_a_circle_would_be_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, other in (("one.py", "two"), ("two.py", "one")):
        (tmp_path / name).write_text(f"def later():\n    from vlprompt.{other} import x\n")
        monkeypatch.setitem(FILES, name, tmp_path / name)
    assert files_imported("one.py") == {"two.py"}
    with pytest.raises(pytest.fail.Exception, match=r"one\.py"):
        test_there_is_no_circle()


def test_few_rooms() -> None:
    assert len([name for name in FILES if "/" not in name]) <= 10


def test_reports_need_no_learner() -> None:
    files = [name for name in FILES if name.startswith("reports/")]
    assert not [(name, file) for name in files for file in reached(name) if file.startswith(("learners/", "towers/"))]


def test_protocols_and_sampling_reach_no_torch() -> None:
    files = [name for name in FILES if name.startswith("protocols/")] + ["data/dataset.py", "data/sampling.py"]
    assert not set().union(*map(reached, files)) & (importers("torch") | importers("torchvision"))


def test_borrowed_libraries_stay_where_they_belong() -> None:
    assert {name.split("/")[0] for name in importers("open_clip") | importers("timm")} == {"towers"}
    hydra = {f"config/{name}.py" for name in ("cells", "compose", "launch", "options", "queue")} | {"sweep.py"}
    assert importers("hydra") | importers("omegaconf") == hydra
    assert importers("submitit") == {"config/queue.py"}
    assert importers("wandb") == {"training/tracking.py"}


def test_annotations_are_not_postponed() -> None:
    """Postponed ones would keep the shapes in them from being checked."""
    assert importers("__future__.annotations") == set()


def test_learners_are_small() -> None:
    lines = {name: len(FILES[name].read_text(encoding="utf-8").splitlines()) for name in LEARNERS}
    assert max(lines.values()) <= 150, lines
    assert median(lines.values()) <= 70, lines


def test_names_say_what_is_inside() -> None:
    vague = ("util", "helper", "manager", "wrapper", "misc")
    assert not [name for name in FILES if any(word in name for word in vague)]


SAFE = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}
UNSAFE = ("yaml.load", "yaml.unsafe_load", "yaml.full_load", "pd.read_pickle", "eval", "exec", "os.system", "os.popen")


def calls(name: str) -> Iterator[tuple[str, dict[str, object]]]:
    """What a file calls, as it is written there, with the constants among the keywords."""
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            keywords = {k.arg: k.value.value for k in node.keywords if k.arg and isinstance(k.value, ast.Constant)}
            yield ast.unparse(node.func), keywords


def check_executes_nothing(name: str) -> None:
    unsafe = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "scipy.io", "h5py"}
    if name == "interop/dassl/lists.py":  # it looks at each instruction before
        unsafe.remove("pickle")
    assert not [dotted for dotted in imports(name) for library in unsafe if f"{dotted}.".startswith(f"{library}.")]
    for function, keywords in calls(name):
        assert function not in UNSAFE, function
        key, safe = SAFE.get(function, ("", None))
        assert keywords.get(key) is safe, function


@pytest.mark.parametrize("name", FILES)
def test_no_file_that_is_read_is_executed(name: str) -> None:
    check_executes_nothing(name)


@pytest.mark.parametrize("text", ["torch.load(path)", "np.load(x, allow_pickle=True)", "yaml.load(x)", "import pickle"])
def test_a_call_that_executes_would_be_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> None:
    name = f"{text}.py"
    (tmp_path / "x.py").write_text(text)
    monkeypatch.setitem(FILES, name, tmp_path / "x.py")
    with pytest.raises(AssertionError):
        check_executes_nothing(name)
