"""`vlprompt import`: what people own from the CoOp family, in our form; and files that mean harm."""

import json
import pickle
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_parity import FIXTURES, tiny_clip  # noqa: F401

from vlprompt import cli, saved
from vlprompt.data.lists import read_list
from vlprompt.errors import UserError
from vlprompt.imports import checkpoints, logs, pickles
from vlprompt.imports.dassl import Facts
from vlprompt.imports.loading import read_checkpoint
from vlprompt.records import find_records
from vlprompt.towers import Clip, Images

PARSE = Path(__file__).parent / "fixtures" / "data" / "parse"
FORMS = {
    "coop_m4": ("coop", "CoOp"),
    "cocoop_m4": ("cocoop", "CoCoOp"),
    "maple_n2_d3": ("maple", "MaPLe"),
    "ivlp_2x2_d3": ("ivlp", "IVLP"),
    "kgcoop": ("coop", "KgCoOp"),
    "promptsrc": ("ivlp", "PromptSRC"),
    "vpt_deep_d3": ("vpt_deep", "VPT"),
}
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def read_case(name: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    file = FIXTURES / "cases" / name
    return json.loads(file.with_suffix(".json").read_text()), safetensors.torch.load_file(
        file.with_suffix(".safetensors")
    )


def trained_tensors(case: dict[str, Any], tensors: dict[str, torch.Tensor]) -> tuple[str, dict[str, torch.Tensor]]:
    """The run with all its parameters after the last step, and these under the originals' names."""
    run = "paper" if "paper" in case["runs"] else next(iter(case["runs"]))
    last = max(int(key.split(".")[1].removeprefix("param")) for key in tensors if key.startswith(f"{run}.param"))
    prefix = f"{run}.param{last}."
    return run, {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def save_as_dassl(path: Path, state: dict[str, torch.Tensor], *, prefix: str = "prompt_learner.") -> None:
    """A checkpoint as Dassl writes it: of the prompt learner alone where all tensors are its own."""
    if all(name.startswith(prefix) for name in state):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": state, "epoch": 50, "optimizer": optimizer.state_dict(), "scheduler": None,
                "val_result": np.float64(87.5)}, path)  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_imported_prompts_give_the_originals_logits(tiny_clip: Clip, tmp_path: Path, name: str) -> None:  # noqa: F811
    case, tensors = read_case(name)
    method, form = FORMS[name]
    run, state = trained_tensors(case, tensors)
    path = tmp_path / "MultiModalPromptLearner" / "model.pth.tar-50"
    save_as_dassl(path, state)
    options = case["config"]["trainer_options"]
    phrase = options.get("CTX_INIT")
    told = Facts(trainer=form, ctx_init="a photo of a" if phrase is True else phrase or "")
    trained = checkpoints.convert(read_checkpoint(path), path, method=method, facts=told)
    assert (trained.method, trained.form) == (method, form)
    folder = tmp_path / "learner"
    checkpoints.write_learner(trained, folder, origin={"file": str(path)}, backbone={}, geometry=None,
                              classes=case["config"]["classnames"], about={}, force=False)  # fmt: skip
    config = saved.read_config(folder)
    learner = checkpoints.LEARNERS[trained.original](tiny_clip, config["classes"], **config["arguments"]).eval()
    saved.load_tensors(learner, folder)
    images = Images(tensors["inputs.eval_images"].float())
    with torch.no_grad():
        logits = learner.logits(images, learner.encode_classes())
    torch.testing.assert_close(logits, tensors[f"{run}.logits_final_eval_images"], atol=1e-4, rtol=1e-5)


def test_the_command_on_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For the demo's backbone: its text width is 96."""
    path = tmp_path / "shots_16/CoOp/cfg/seed1/prompt_learner/model.pth.tar-50"
    save_as_dassl(path, {"prompt_learner.ctx": torch.randn(4, 96).half()})
    names = tmp_path / "names.txt"
    names.write_text("red star\nblue ring\n")
    arguments = [
        "import",
        str(path),
        "--backbone",
        "shapes_vit",
        "--classes",
        str(names),
        "--output",
        f"{tmp_path}/out",
    ]
    assert cli.main([*arguments, "--method", "coop", "--ctx-init", "a photo of a"]) == 0
    config = saved.read_config(tmp_path / "out")
    assert config["arguments"]["ctx_init"] == "a photo of a"
    assert (config["method"], config["classes"], config["origin"]["epoch"]) == ("coop", ["red star", "blue ring"], 50)
    assert safetensors.torch.load_file(tmp_path / "out" / saved.TENSORS)["context"].dtype == torch.float32
    assert cli.main(arguments) == 2
    assert "--force replaces it" in capsys.readouterr().err
    assert cli.main([*arguments[:3], "vit_b16", "--method", "coop"]) == 2
    assert "text width of 96, vit_b16 has 512" in capsys.readouterr().err


class Harm:
    """What an attacker would pickle."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (Path.touch, (self.marker,))


def test_a_checkpoint_that_would_run_code(tmp_path: Path) -> None:
    path, marker = tmp_path / "model.pth.tar-1", tmp_path / "ran"
    torch.save({"state_dict": {"ctx": torch.zeros(4, 8)}, "extra": Harm(marker)}, path)
    with pytest.raises(UserError, match=r"nothing of it was executed|no checkpoint"):
        read_checkpoint(path)
    assert not marker.exists()


def pickle_of(content: Any, path: Path, module: str = "dassl.data.datasets.base_dataset") -> None:
    """A pickle whose Datum objects come from Dassl's module, which is not there when it is read."""
    parents = [".".join(module.split(".")[: n + 1]) for n in range(module.count(".") + 1)]
    for name in parents:
        sys.modules[name] = ModuleType(name)
    datum = type("Datum", (), {"__module__": module, "__qualname__": "Datum"})
    sys.modules[module].Datum = datum  # type: ignore[attr-defined]
    try:

        def make(image: str, label: int, classname: str) -> Any:
            made = datum()
            vars(made).update(_impath=image, _label=label, _domain=0, _classname=classname)
            return made

        lists = {part: [make(*row) for row in rows] for part, rows in content.items()}
        path.write_bytes(pickle.dumps(lists))
    finally:
        for name in parents:
            del sys.modules[name]


SHOTS = {
    "train": [("/data/caltech-101/101_ObjectCategories/Faces/image_1.jpg", 0, "face")],
    "val": [("/data/caltech-101/101_ObjectCategories/airplanes/image_2.jpg", 4, "airplane")],
}


@pytest.mark.parametrize("module", ["dassl.data.datasets.base_dataset", "datasets.utils"])
def test_few_shot_pickles_become_lists(tmp_path: Path, module: str) -> None:
    path, out = tmp_path / "shot_1-seed_1.pkl", tmp_path / "out.jsonl"
    pickle_of(SHOTS, path, module)
    assert cli.main(["import", str(path), "--images", "101_ObjectCategories", "--output", str(out)]) == 0
    lines = [line.model_dump() for _, line in read_list(out)]
    assert lines == [
        {"path": "Faces/image_1.jpg", "label": 0, "classname": "face", "split": "train"},
        {"path": "airplanes/image_2.jpg", "label": 4, "classname": "airplane", "split": "val"},
    ]


def test_a_pickle_that_would_run_code(tmp_path: Path) -> None:
    path, marker = tmp_path / "shot.pkl", tmp_path / "ran"
    path.write_bytes(pickle.dumps({"train": [Harm(marker)], "val": []}))
    with pytest.raises(UserError):
        pickles.read_pickle(path)
    assert not marker.exists()


def test_logs_become_marked_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = {1: (0.876, 0.737), 2: (0.802, 0.673), 3: (0.839, 0.657)}  # parse_expected.json, as printed
    for half in ("base", "new"):
        split = {"base": "base", "new": "novel"}[half]
        for seed in expected:
            arguments = ["import", str(PARSE / half / f"seed{seed}" / "log.txt"), "--output", str(tmp_path)]
            facts = ["--dataset", "dtd", "--method", "coop", "--backbone", "vit_b16", "--shots", "16"]
            where = ["--protocol", "base_to_novel", "--seed", str(seed), "--split", split]
            assert cli.main([*arguments, *facts, *where]) == 0, capsys.readouterr().err
    records = find_records([tmp_path])
    got: dict[int, dict[str, float]] = {}
    for record in records:
        assert record.imported
        assert record.variant is not None
        assert record.variant.startswith("imported")
        got.setdefault(record.seed, {}).update({s: kept["accuracy"] for s, kept in record.scores.items()})
    for seed, (base, novel) in expected.items():
        assert got[seed]["base"] == pytest.approx(base)
        assert got[seed]["novel"] == pytest.approx(novel)
    assert cli.main(["table", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "imported" in out
    assert "logs of other software" in out


@QUICK
@given(content=st.binary(max_size=300))
@pytest.mark.parametrize("read", [read_checkpoint, pickles.read_pickle, logs.read_log])
def test_random_bytes(tmp_path: Path, read: Any, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(UserError):
        read(path)


@QUICK
@given(data=st.data())
@pytest.mark.parametrize("kind", ["checkpoint", "pickle", "log"])
def test_mutated_files(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    """Read, or refused in a sentence: nothing else."""
    path = tmp_path / "file"
    if kind == "checkpoint":
        save_as_dassl(path, {"prompt_learner.ctx": torch.ones(2, 4)})
    elif kind == "pickle":
        pickle_of(SHOTS, path)
    else:
        path.write_bytes((PARSE / "base/seed1/log.txt").read_bytes())
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    before = set(tmp_path.iterdir())
    read: Any = {"checkpoint": read_checkpoint, "pickle": pickles.read_pickle, "log": logs.read_log}[kind]
    try:
        found = read(path)
        if kind == "checkpoint":
            checkpoints.convert(found, path, method="coop", facts=Facts())
    except UserError:
        pass
    assert set(tmp_path.iterdir()) == before
