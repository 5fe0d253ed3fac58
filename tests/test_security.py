"""Nothing that lies in a results folder, a checkpoint, a list or a data set is imported, called or executed."""

import ast
import contextlib
import io
import json
import pickle
import pickletools
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

import open_clip
import pytest
import torch
import yaml
from dassl_files import few_shot_pickle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from running import ROOT, ask, environment_in, set_up
from tiny_world import RUN

import vlprompt
from vlprompt import cli, demo, sweep
from vlprompt.config import datasets
from vlprompt.config.allowed import METHODS, PROTOCOLS, SOURCES, check_names
from vlprompt.config.build import restore_learner
from vlprompt.config.identity import is_same_run
from vlprompt.config.locate import import_named
from vlprompt.config.paths import config_dir
from vlprompt.config.spec import spec_of_record
from vlprompt.errors import UserError
from vlprompt.interop.dassl import lists, loading
from vlprompt.reports.figures.style import new_figure, styled
from vlprompt.results.record import Record
from vlprompt.results.store import find_runs
from vlprompt.towers import load_clip, pickles
from vlprompt.towers.weights import read_state

PACKAGE = Path(vlprompt.__file__).parent
WORLD = [*RUN[:3], "shots=2", "fit.epochs=1", "fit.lr=0.05"]
EVIL = "evil.X"


# What the code itself may call


LOADERS = {"eval", "exec", "compile", "__import__", "execfile"}
ATTRIBUTES = {
    "import_module",
    "system",
    "popen",
    "unsafe_load",
    "full_load",
    "load_module",
    "exec_module",
    "trust_remote_code",
}
ONLY_IN = {
    ("__init__.py", "importlib.import_module"),  # of the package's own modules, by names that stand there
    ("learners/__init__.py", "importlib.import_module"),  # of the modules in its folder
    ("config/locate.py", "pydoc.locate"),
    ("learners/inner.py", "pydoc.locate"),  # of `method.inner`, which config/allowed.py asks for where a file names it
    ("interop/dassl/lists.py", "pickle.Unpickler"),  # a subclass of it, which knows one class
    ("towers/weights.py", "torch.jit.load"),  # of archives whose content is known
}


def calls(tree: ast.AST) -> Iterator[tuple[str, dict[str, ast.expr]]]:
    """The dotted names of all that is called, subclassed or passed on, and keyword arguments of calls."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {keyword.arg or "**": keyword.value for keyword in node.keywords}
        elif isinstance(node, ast.Attribute):
            yield ast.unparse(node), {"(not called)": node}
        elif isinstance(node, ast.ImportFrom):
            yield from ((f"{node.module}.{alias.name}", {"(not called)": node}) for alias in node.names)  # type: ignore


def dangers(source: str) -> set[str]:
    """What in a file's code could run what it did not write."""
    tree, names = ast.parse(source), set()
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for name, keywords in calls(tree):
        node = keywords.get("(not called)")
        if node is not None and id(node) in called:
            continue  # seen with its arguments
        last, given = name.rpartition(".")[2], {key: ast.unparse(value) for key, value in keywords.items()}
        dangerous = (
            (node is None and name in LOADERS)
            or last in ATTRIBUTES
            or name in ("pydoc.locate", "torch.jit.load", "joblib.load", "dill.load", "hydra.utils.instantiate")
            or (name.startswith(("pickle.", "marshal.", "shelve.")) and last not in ("dumps", "UnpicklingError"))
            or (name in ("yaml.load", "yaml.load_all") and "Safe" not in given.get("Loader", ""))
            or (name == "torch.load" and given.get("weights_only") != "True")
            or (name == "np.load" and given.get("allow_pickle") != "False")
            or (name.startswith("subprocess.") and given.get("shell", "False") != "False")
            or name in ("pd.read_pickle", "pandas.read_pickle")
        )
        if dangerous:
            names.add(name)
    return names


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_runs_what_it_did_not_write(path: Path) -> None:
    name = str(path.relative_to(PACKAGE))
    assert {(name, danger) for danger in dangers(path.read_text(encoding="utf-8"))} <= ONLY_IN


@pytest.mark.parametrize(
    "code",
    [
        *("eval(x)", "exec(x)", "__import__(x)", "pickle.loads(x)", "pickle.load(file=x)", "from pickle import loads"),
        *("torch.load(x)", "torch.load(x, weights_only=False)", "torch.load(x, weights_only=mode)", "f = torch.load"),
        *("torch.jit.load(x)", "yaml.load(x)", "yaml.load(x, Loader=yaml.Loader)", "yaml.unsafe_load(x)"),
        *("np.load(x)", "np.load(x, allow_pickle=True)", "pydoc.locate(x)", "importlib.import_module(x)"),
        *("subprocess.run(x, shell=True)", "os.system(x)", "os.popen(x)", "from importlib import import_module"),
        *("map(pickle.loads, x)", "pd.read_pickle(x)", "hydra.utils.instantiate(x)"),
    ],
)  # fmt: skip
def test_a_danger_would_be_seen(code: str) -> None:
    assert dangers(code)
    assert not dangers(
        "yaml.safe_load(x); torch.load(x, weights_only=True); subprocess.run(x); net.eval(); re.compile(x)"
    )


# What files may name


class Watch(MetaPathFinder):
    """Sees every import of a module that is not there yet."""

    def __init__(self, name: str) -> None:
        self.name, self.seen = name, list[str]()

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        if fullname.partition(".")[0] == self.name:
            self.seen.append(fullname)


@pytest.fixture
def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    """The module `evil` can be imported, and that would be seen."""
    (tmp_path / "evil.py").write_text("from vlprompt.learners.dylora import DyLoRA as X\n")
    (tmp_path / "evil_too.py").write_text("from vlprompt.learners.dylora import DyLoRA as X\n")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "methods.py").write_text(
        "import os\nfrom vlprompt.learners.dylora import DyLoRA\nclass Mine(DyLoRA):\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    finder = Watch("evil")
    monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
    yield finder
    for name in ("evil", "evil_too", "mine", "mine.methods"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A results root with a run that has all files, of a user's own reader of data."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        set_up(patch, folder)
        answer = ask(sweep.main, [*WORLD, "method=dylora", "method.rank=2", "protocol=few_shot"])
        assert answer.code == 0, answer.err
    return folder / "results"


@pytest.fixture
def root(trained: Path, tmp_path: Path, results: Path) -> Path:
    """A copy that a test may change. Its folder is the working directory. Whoever means harm leaves checksums out."""
    shutil.copytree(trained, results)
    for path in results.rglob("result.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({key: v for key, v in record.items() if key not in ("files", "checksum")}))
    return results


def run_in(root: Path) -> tuple[Path, Record]:
    return next((f, r) for f, r in find_runs([root]).items() if r.method == "dylora")


READERS = {"config.yaml": yaml.safe_load, "learner_config.json": json.loads, "result.json": json.loads}


def leaves(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where in a tree there are texts or null."""
    if isinstance(tree, dict | list):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from leaves(value, (*path, key))
    elif tree is None or isinstance(tree, str):
        yield path


def put(folder: Path, file: str, changes: Mapping[tuple[Any, ...], Any]) -> None:
    """Change values of a file; JSON is YAML."""
    content = READERS[file]((folder / file).read_text(encoding="utf-8"))
    for path, value in changes.items():
        inner = content
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
    (folder / file).write_text(json.dumps(content), encoding="utf-8")


def everywhere(folder: Path, value: Any, only: str = "") -> None:
    """Put a value to each place of each file that has a text, or is called `only`."""
    for file, read in READERS.items():
        tree = read((folder / file).read_text(encoding="utf-8"))
        put(folder, file, {path: value for path in leaves(tree) if only in str(path[-1])})


def opened(folder: Path, **more: Any) -> list[Callable[[], object]]:
    """All that is built of a run's files."""

    def spec() -> object:
        record = Record.read(folder)
        assert record is not None
        return spec_of_record(folder, record, **more)

    return [spec, lambda: restore_learner(folder, **more)]


TARGET = {"dataset": {"name": "x", "template": "a {}.", "source": {"_target_": EVIL}}, "method": {}}


def test_each_text_of_each_file_may_name_a_stranger(root: Path, watch: Watch) -> None:
    folder, _ = run_in(root)
    originals = {file: (folder / file).read_text(encoding="utf-8") for file in READERS}
    put(folder, "config.yaml", {("targets",): {"x": TARGET}})
    refused = 0
    spec, learner = opened(folder)
    for file, read in READERS.items():
        text = (folder / file).read_text(encoding="utf-8")
        for path in leaves(read(text)):
            if file == "result.json" and len(path) > 1:  # all at once in the next test
                continue
            put(folder, file, {path: EVIL})
            try:
                learner() if file == "learner_config.json" else spec()
            except UserError as error:
                refused += "VLPROMPT_ALLOW" in str(error)
            (folder / file).write_text(text, encoding="utf-8")
        (folder / file).write_text(originals[file], encoding="utf-8")
    assert refused > 4
    assert not watch.seen
    everywhere(folder, EVIL, "target")
    put(folder, "config.yaml", {("targets",): {}})
    restore_learner(folder, allow=["evil"])
    assert watch.seen  # it would have been


COMMANDS = [
    (["table"], 0),
    (["table", "--layout", "auto", "--format", "csv"], 0),
    (["compare", "dylora", "zero_shot"], None),
    (["curve", "method.rank"], None),
    (["plot", "few-shot", "--output", "x.svg"], None),
    (["evaluate", "method.test_rank=1"], 2),
    (["evaluate", "method.test_rank=1", "--format", "csv"], 2),
]


def test_no_command_imports_what_a_folder_names(root: Path, watch: Watch, tmp_path: Path) -> None:
    folder, _ = run_in(root)
    for only in ("target", ""):
        if only:
            everywhere(folder, EVIL, only)
        else:
            put(folder, "config.yaml", {("targets",): {"x": TARGET}})
            put(folder, "result.json", {("config",): {"method": EVIL, "dataset": [EVIL], "_target_": EVIL}})
        for command, code in COMMANDS:
            answer = ask(cli.main, command)
            assert answer.code in ((0, 1, 2) if code is None else (code,)), (command, answer)
            assert "Traceback" not in answer.err
        for command in (["export", str(folder), "out"], ["import", str(folder)]):
            assert ask(cli.main, command).code == 2
        # the same cell once more: the run that is there is read, and not repeated
        answer = ask(sweep.main, [*WORLD, "method=dylora", "method.rank=2", "protocol=few_shot"])
        assert answer.code == 0, answer
    assert not watch.seen
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_made_is_refused(root: Path) -> None:
    folder, record = run_in(root)
    put(folder, "config.yaml", {("protocol",): {"_target_": "vlprompt.protocols.base.Protocol"}})
    with pytest.raises(UserError, match=r"protocol\._target_"):
        spec_of_record(folder, record)
    put(folder, "config.yaml", {("protocol",): record.config["protocol"], ("method", "template"): "~ a {}"})
    assert spec_of_record(folder, record).arguments["template"] == "~ a {}"  # no path in a home folder


def test_a_record_tells_no_defaults(root: Path, watch: Watch) -> None:
    folder, record = run_in(root)
    relevant = spec_of_record(folder, record).result_settings
    assert is_same_run(record, relevant)
    for strange in ({"method": EVIL}, {"method": {"_target_": EVIL}}, {"dataset": [EVIL]}, {"targets": EVIL, "fit": 3}):
        config = {**record.config, **strange}
        for hashed in (record.config_hash, "0"):
            changed = record.model_copy(update={"config": config, "config_hash": hashed})
            assert is_same_run(changed, relevant) == (hashed != "0")
    assert not watch.seen


def test_what_the_user_allows_is_tested_again(root: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence says what to set, for all of a run's names at once; that is enough, and less is not."""
    monkeypatch.setenv("VLPROMPT_ALLOW", "")
    folder, record = run_in(root)
    command = ["evaluate", "method.test_rank=1"]
    assert "VLPROMPT_ALLOW=tiny_world" in ask(cli.main, command).err
    put(folder, "config.yaml", {("method", "_target_"): "mine.methods.Mine"})
    put(folder, "learner_config.json", {("target",): "mine.methods.Mine"})
    monkeypatch.setenv("VLPROMPT_ALLOW", "my_other")
    answer = ask(cli.main, command)
    said = re.search(r"VLPROMPT_ALLOW=(\S+)", answer.err)
    assert answer.code == 2
    assert said
    assert set(said[1].split(",")) == {"my_other", "mine.methods", "tiny_world"}
    for allowed, code in ((said[1], 0), ("mine, tiny_world", 0), ("mine", 2), ("min,tiny_world", 2), ("*", 2)):
        monkeypatch.setenv("VLPROMPT_ALLOW", allowed)
        assert ask(cli.main, command).code == code, allowed
    monkeypatch.delenv("VLPROMPT_ALLOW")
    assert spec_of_record(folder, record, allow=["mine", "tiny_world"]).trained
    assert type(restore_learner(folder, allow=["mine"])).__name__ == "Mine"
    with pytest.raises(UserError, match=r"VLPROMPT_ALLOW=mine\.methods"):
        restore_learner(folder)


def test_what_a_module_imports_is_not_its_own(watch: Watch, tmp_path: Path) -> None:
    def check(target: object, rooms: tuple[str, ...], allow: tuple[str, ...] = ()) -> None:
        check_names({"x": (target, rooms)}, "ViT-B-32", tmp_path, allow)

    check("vlprompt.learners.coop.CoOp", METHODS)
    check("vlprompt.protocols.few_shot.FewShot", PROTOCOLS)
    check("vlprompt.data.sources.folder.load", SOURCES)
    check("vlprompt.demo.shapes.load", SOURCES)
    check("mine.methods.Mine", METHODS, ("mine",))
    for target in (
        *("vlprompt.learners.base.pydoc.os.system", "vlprompt.cli.main", "vlprompt.errors.UserError", "os.system"),
        *("vlprompt.learners.coop.CoOp.forward", "vlprompt.learners.base.Tensor", "vlprompt.learners..coop.CoOp"),
        *("vlprompt.protocols.few_shot.FewShot", "vlprompt.learners.nothing.X", "vlprompt.learners.coop.Nothing"),
        *("evil.X", "evil", ".evil.X", "evil..X", "evil.X\n", "evil X.Y", "", None, 3, ["evil.X"], {1: "evil.X"}),
        *("evil." * 100 + "X", "vlprompt.evil.X", "evil_too.X", "mine.methods.os.system", "mine.methods.os"),
    ):
        with pytest.raises(UserError):
            check(target, METHODS, ("mine",))
    for target in (
        *("vlprompt.data.sources.folder.store", "vlprompt.data.sources.files.Files", "vlprompt.data.disk.sync"),
        *("vlprompt.data.sources.folder.load.__call__", "vlprompt.data.sources.files.io.open", "mine.methods.os.walk"),
        *("vlprompt.data.sources.layouts.PARTS", "os.walk", "evil.X"),
    ):
        with pytest.raises(UserError):
            check(target, SOURCES, ("mine",))
    assert not watch.seen


def test_all_that_conf_names_is_the_packages_own(tmp_path: Path) -> None:
    rooms = {"method": METHODS, "protocol": PROTOCOLS, "dataset": SOURCES}
    for group, allowed in rooms.items():
        texts = "".join(path.read_text(encoding="utf-8") for path in (config_dir() / group).glob("*.yaml"))
        names = re.findall(r"_target_: *(\S+)", texts)
        assert len(names) > 4
        for name in names:
            check_names({"x": (name, allowed)}, "ViT-B-32", tmp_path)


WORDS = st.sampled_from(
    ["vlprompt", "learners", "coop", "CoOp", "base", "Learner", "Tensor", "os", "system", "evil", "X", "", "__init__"]
)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(target=st.lists(WORDS, max_size=6).map(".".join) | st.text(max_size=20))
def test_a_name_is_a_learner_of_the_package_or_refused(watch: Watch, target: str) -> None:
    try:
        check_names({"x": (target, METHODS)}, "ViT-B-32", Path("x"))
    except UserError:
        pass
    else:
        assert target.startswith("vlprompt.learners.")
        assert import_named(target, "x").__module__.startswith("vlprompt.learners.")
    assert not watch.seen


@pytest.mark.parametrize(
    "model", ["hf-hub:a/b", "hf-hub:../x", "local-dir:x", "hf-hub:a/b/c", "HF-HUB:a/b", "http://x/y"]
)
def test_a_model_of_a_hub_is_not_fetched(root: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    for name in ("create_model", "get_model_config", "get_tokenizer"):
        monkeypatch.setattr(open_clip, name, lambda *given, **more: asked.append(given))
    folder, _ = run_in(root)
    put(folder, "config.yaml", {("backbone", "model"): model})
    put(folder, "learner_config.json", {("backbone", "model"): model})
    for build in opened(folder):
        with pytest.raises(UserError, match=r"backbone\.model") as caught:
            build()
        assert (f"VLPROMPT_ALLOW=tiny_world,{model}" in str(caught.value)) == (model == "hf-hub:a/b")
    assert not asked
    if model == "hf-hub:a/b":
        check_names({}, model, folder, ["hf-hub:a/b"])
        check_names({}, "C:\\models\\clip", folder)


def test_a_file_says_not_what_is_fetched_or_written(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[object] = []
    monkeypatch.setattr(datasets, "ensure", lambda *given, **more: fetched.append(given))
    folder, record = run_in(root)
    about = {"licence": "x", "files": [{"path": "x", "urls": ["http://127.0.0.1:9/x"]}]}
    for changes in (
        {("dataset", "about"): about, ("data", "download"): True},
        {("targets",): {"x": {"dataset": {**TARGET["dataset"], "about": about}, "method": {}}}},
    ):
        put(folder, "config.yaml", changes)
        with pytest.raises(UserError):
            spec_of_record(folder, record.model_copy(update={"split_hash": "0"}))
    assert not fetched
    put(folder, "config.yaml", {("targets",): {}, ("dataset", "about"): None, ("workers",): 10**6})
    assert (spec_of_record(folder, record).settings.workers or 0) < 100
    (tmp_path / "images").mkdir()
    source = {"_target_": "vlprompt.data.sources.folder.load", "path": str(tmp_path / "images"), "stored": "new.sh"}
    put(folder, "config.yaml", {("dataset", "source"): source})
    with pytest.raises(UserError, match=r"new\.sh"):
        spec_of_record(folder, record)
    assert not (tmp_path / "new.sh").exists()


def test_a_published_number_names_no_file(results: Path, watch: Watch, tmp_path: Path) -> None:
    """Hydra would read a YAML outside its folders, and what that names is taken for the user's."""
    config = {"name": "x", "template": "a {}.", "source": {"_target_": "evil.load"}}
    (tmp_path / "stranger.yaml").write_text("# @package _global_\n" + yaml.safe_dump({"dataset": config}))
    outside = "../" * 12 + str(tmp_path / "stranger").lstrip("/")
    assert ask(sweep.main, [f"dataset={outside}", "method=zero_shot"]).code == 2
    assert watch.seen  # the user's own word is taken
    watch.seen.clear()
    head = "source,protocol,dataset,method,backbone,shots,metric,value,recipe,printed\n"
    (tmp_path / "numbers.csv").write_text(
        f"x,few_shot,{outside},zero_shot,shapes_vit,0,accuracy,1,zero_shot/few_shot,x\n"
    )
    (tmp_path / "numbers.csv").write_text(head + (tmp_path / "numbers.csv").read_text())
    answer = ask(cli.main, ["reproduce", "zero_shot", "--published", str(tmp_path / "numbers.csv"), "--dry-run"])
    assert "cannot be a name in conf/" in answer.out + answer.err
    assert not watch.seen


@pytest.mark.slow
def test_modules_in_the_working_directory_are_not_imported(trained: Path, tmp_path: Path) -> None:
    """The console script has its own folder on the path, not the working directory."""
    script = tmp_path / "bin" / "vlprompt"
    script.parent.mkdir()
    script.write_text("import sys\nfrom vlprompt.cli import main\nsys.exit(main(sys.argv[1:]))\n")
    here = tmp_path / "here"
    shutil.copytree(trained, here / "results")
    for name in ("yaml", "torch", "pandas", "evil", "hydra_plugins/evil", "vlprompt/__init__", "sitecustomize"):
        (here / name).parent.mkdir(exist_ok=True)
        (here / f"{name}.py").write_text("open('executed', 'w')\n")
    environment = environment_in(here) | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script), "table", "results"]
    answer = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert "dylora" in answer.stdout
    assert not (here / "executed").exists()


# What is read


def test_no_figure_has_latex_run() -> None:
    """A `matplotlibrc` in the working directory is read when matplotlib is imported."""
    matplotlib = pytest.importorskip("matplotlib")
    with matplotlib.rc_context({"text.usetex": True}), styled():
        figure = new_figure(1.0, 1.0)
        assert not figure.text(0, 0, "x").get_usetex()


@pytest.mark.parametrize("asked", [{}, {"trust_remote_code": True}])
def test_no_tokenizer_runs_code_of_its_folder(asked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    class AutoTokenizer:
        @staticmethod
        def from_pretrained(name: object, **more: Any) -> object:
            given.append(more)
            return object()

    library = ModuleType("transformers")
    library.AutoTokenizer = AutoTokenizer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformers", library)
    shutil.copytree(demo.BACKBONES["shapes_vit"], tmp_path / "model")
    file = tmp_path / "model" / "open_clip_config.json"
    config = json.loads(file.read_text())
    config["model_cfg"]["text_cfg"] |= {"hf_tokenizer_name": "a/b", "tokenizer_kwargs": asked}
    file.write_text(json.dumps(config))
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    with contextlib.suppress(UserError) if asked else contextlib.nullcontext():
        load_clip(str(tmp_path / "model"))
    assert given or asked
    assert all(more["trust_remote_code"] is False for more in given)


def test_an_image_tower_of_a_hub_is_not_fetched(tmp_path: Path) -> None:
    vision = {"timm_model_name": "hf-hub:a/b", "image_size": 32}
    config = {"embed_dim": 8, "vision_cfg": vision, "text_cfg": {"width": 8, "heads": 1, "layers": 1}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    with pytest.raises(UserError, match="hf-hub:a/b"):
        load_clip(str(tmp_path))


DEEP = 3 * 10**5
DATUM = b"cdassl.data.datasets\nDatum\n"
ATTACKS = {
    "call": b"cposix\nsystem\n(S'touch executed'\ntR.",
    "stack global": b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x0etouch executed\x85R.",
    "instance": b"(S'touch executed'\niposix\nsystem\n.",
    "object": b"(cposix\nsystem\nS'touch executed'\no.",
    "new object": b"\x80\x04cposix\nsystem\n)}\x92.",
    "part of the one class": b"\x80\x04\x8c\x14dassl.data.datasets\x8c\x0eDatum.__init__\x93.",
    "extension": b"\x80\x02\x82\x01.",
    "persistent": b"\x80\x02Pid\n.",
    "attributes of the class": DATUM + b"N}S'__del__'\n" + DATUM + b"s\x86b.",
    "state of the class": DATUM + b"}S'__del__'\n" + DATUM + b"sb.",
    "deep key": b"\x80\x02})" + b"\x85" * DEEP + b"Ns.",
    "deep lists": b"\x80\x02" + b"]" * DEEP + b"a" * (DEEP - 1) + b".",
    "many objects": b"\x80\x02" + b"]0" * DEEP + b"].",
    "memo": b"\x80\x04r\xff\xff\xff\xff.",
    "long": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "negative long": b"\x80\x02\x8b\xff\xff\xff\xff.",
    "long text": b"\x80\x04\x8d" + b"\xff" * 8 + b".",
    "long bytes": b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.",
    "frame": b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f}.",
    "number": b"I" + b"9" * 10**5 + b"\n.",
    "itself": b"(lp0\ng0\na.",
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_by_pickle_are_refused(attack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lists, "MOST_OPCODES", 2 * DEEP)
    path = tmp_path / "shot_1-seed_1.pkl"
    path.write_bytes(ATTACKS[attack])
    answer = ask(cli.main, ["import", str(path)])
    assert (answer.code, answer.err.count("\n"), answer.out) == (2, 1, "")
    assert str(path) in answer.err
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("attack", ["deep key", "many objects"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_pickle_of_tensors_ends_no_process(
    attack: str, zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pickles, "MOST", DEEP)
    state = {"ctx": torch.zeros(2, 3)}
    torch.save(state, tmp_path / "good.pt", _use_new_zipfile_serialization=zipped)
    path = tmp_path / "model.pth.tar-1"
    if zipped:
        with zipfile.ZipFile(tmp_path / "good.pt") as old, zipfile.ZipFile(path, "w") as new:
            for name in old.namelist():
                new.writestr(name, ATTACKS[attack] if name.endswith("data.pkl") else old.read(name))
    else:
        file = io.BytesIO((tmp_path / "good.pt").read_bytes())
        for _ in range(3):  # before the content
            list(pickletools.genops(file))
        with zipfile.ZipFile(tmp_path / "appended", "w") as appended:  # torch goes by the first bytes alone
            appended.writestr("data.pkl", pickle.dumps({}))
        start, end = file.getvalue()[: file.tell()], (tmp_path / "appended").read_bytes()
        path.write_bytes(start + ATTACKS[attack] + end)
    assert ask(cli.main, ["import", str(path), "--backbone", "vit_b16"]).code == 2
    for read in (loading.read_checkpoint, read_state):
        read(tmp_path / "good.pt")
        with pytest.raises(UserError, match="more objects than tensors need"):
            read(path)


PIECES = st.sampled_from(
    [DATUM, b"cposix\nsystem\n", b"\x8c\x05posix", b"\x8c\x06system", b"S'touch executed'\n", b"(", b")", b"}"]
) | st.integers(0, 255).map(lambda code: bytes([code]))  # fmt: skip


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(pieces=st.lists(PIECES, max_size=20), at=st.integers(0, 200))
def test_no_pickle_calls_anything(pieces: list[bytes], at: int, tmp_path: Path) -> None:
    honest = few_shot_pickle({"train": [("/a/b.jpg", 0, "x")]}) if at % 2 else b"\x80\x04."
    path = tmp_path / "list.pkl"
    path.write_bytes(honest[:at] + b"".join(pieces) + honest[at:])
    with pytest.MonkeyPatch.context() as patch:
        called: list[object] = []
        patch.setattr(lists._Unpickler, "persistent_load", called.append, raising=False)
        patch.setattr("os.system", called.append)
        with contextlib.suppress(UserError):
            lists.read_pickle(path)
        assert not called


def test_the_attacks_would_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for attack in ("call", "stack global", "instance", "object"):
        pickle.loads(ATTACKS[attack])
        (tmp_path / "executed").unlink()


# What is shown and written


def test_what_a_log_says_steers_no_terminal(results: Path, tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[2Jb" / "log.txt"
    path.parent.mkdir()
    path.write_text("nothing")
    answer = ask(cli.main, ["import", str(path.parent)])
    assert answer.code == 2
    assert "\x1b" not in answer.out + answer.err
    assert r"\x1b[2J" in answer.err


def test_an_adapter_is_replaced_only_where_that_is_said(root: Path, tmp_path: Path) -> None:
    folder, _ = run_in(root)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        target = tmp_path / f"to {name}"
        target.mkdir()
        (target / name).symlink_to(tmp_path / "elsewhere")  # to nothing yet
        answer = ask(cli.main, ["export", str(folder), str(target)])
        assert (answer.code, name in answer.err, "--force" in answer.err) == (2, True, True)
        assert ask(cli.main, ["export", str(folder), str(target), "--force"]).code == 0
        assert not (tmp_path / "elsewhere").exists()
        assert {file.name for file in target.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    (tmp_path / "file").write_text("mine")
    answer = ask(cli.main, ["export", str(folder), str(tmp_path / "file")])
    assert (answer.code, (tmp_path / "file").read_text()) == (2, "mine")
