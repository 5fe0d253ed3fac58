"""What docs/python.md shows runs as it is written there, from top to bottom, and gives what its comments say."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from running import ROOT, ask

import vlprompt
from vlprompt import sweep
from vlprompt.results import learner_files

PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
(COMMAND,) = re.findall(r"```bash\npython run\.py (.*?)\n```", PAGE)
CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def execute(blocks: list[str]) -> dict[str, Any]:
    """The names that these blocks leave."""
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)
    return names


def check_first(names: dict[str, Any]) -> None:
    model, image = names["model"], names["image"]
    assert model.classes == CLASSES
    (by_path, by_image) = model.predict(["seven.png", image], top=3)
    assert by_path == by_image
    assert len(by_path) == 3
    assert model.logits(image).shape == (1, 10)
    assert model.with_classes(["circle", "square", "letter"]).classes == ("circle", "square", "letter")


def test_its_first_lines_run(results: Path) -> None:
    """On a learner in the folder that the page names."""
    (named,) = re.findall(r'vlprompt\.load\("results/(runs/.*?)"\)', PAGE)
    learner = vlprompt.learners.CoOp(vlprompt.load_clip("shapes_vit"), CLASSES, n_context=2)
    backbone = {"model": "shapes_vit", "weights": "pretrained"}
    about = {"target": "vlprompt.learners.coop.CoOp", "arguments": {"n_context": 2}, "backbone": backbone}
    (folder := results / named).mkdir(parents=True)
    learner_files.save(learner, folder, about)
    check_first(execute(BLOCKS[:2]))


@pytest.mark.slow
def test_all_of_it_runs(results: Path) -> None:
    assert ask(sweep.main, shlex.split(COMMAND)).code == 0
    names = execute(BLOCKS)
    check_first(names)
    curve = names["curve"]
    assert len(curve) == 5
    assert curve[-1].loss < curve[0].loss
    assert vlprompt.score(names["learner"], names["test_loader"]).total == 100
    assert names["classifier"].score(names["pictures"][100:], names["labels"][100:]) > 0.6
    assert names["classifier"].predict_proba(names["pictures"][:2]).shape == (2, 10)
    assert names["search"].best_params_["lr"] in (0.002, 0.02)
    assert {*names["results"]["method"]} == {"coop", "zero_shot"}
    assert names["record"].scores["test"]["accuracy"] > 0.1


def test_it_begins_with_five_lines() -> None:
    assert len(BLOCKS[1].splitlines()) <= 8
    for name in ("load", "classes", "preprocess", "predict", "logits", "features", "with_classes"):
        assert name in BLOCKS[1]
