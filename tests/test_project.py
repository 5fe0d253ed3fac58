"""What is said in several files of the project is the same in all: versions, bounds, commands, files."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import vlprompt

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # comes with pytest

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
SDIST = [name.lstrip("/") for name in PYPROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]]
CI_RUN = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def read(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


JOBS = read(".github/workflows/ci.yml")["jobs"]


def bounds(dependencies: list[str]) -> dict[str, str]:
    """Lower bounds by package."""
    return dict(re.findall(r"^([\w-]+)>=([\d.]+)", "\n".join(dependencies), re.MULTILINE))


def test_pythons_are_the_same_everywhere() -> None:
    lowest, above = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", PROJECT["requires-python"]).groups()
    allowed = [f"3.{minor}" for minor in range(int(lowest), int(above))]
    assert JOBS["newest"]["strategy"]["matrix"]["python"] == allowed
    said = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d", c)]
    assert said == allowed
    (oldest,) = (step["with"]["python-version"] for step in JOBS["oldest"]["steps"] if "with" in step)
    assert oldest == allowed[0]
    assert f"Python {allowed[0]} to {allowed[-1]}" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_the_oldest_versions_that_ci_tests_are_the_lower_bounds() -> None:
    lines = (ROOT / ".ci" / "oldest.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert pinned == bounds(PROJECT["dependencies"])
    assert len(pinned) == len(PROJECT["dependencies"])
    assert "torch" in pinned
    assert any("-c .ci/oldest.txt" in step.get("run", "") for step in JOBS["oldest"]["steps"])
    assert not any("oldest" in str(step) for step in JOBS["newest"]["steps"])


def test_ci_runs_what_developers_run() -> None:
    assert [step["run"] for step in JOBS["newest"]["steps"] if "run" in step] == ["bash .ci/run"]
    extras = re.findall(r"-e '\.\[([\w,]+)\]'", CI_RUN + str(JOBS) + (ROOT / "CONTRIBUTING.md").read_text())
    assert extras
    assert {extra for several in extras for extra in several.split(",")} <= set(PROJECT["optional-dependencies"])


def test_a_commit_is_held_to_what_ci_checks() -> None:
    (local,) = read(".pre-commit-config.yaml")["repos"]
    entries = {hook["entry"].removesuffix(" --force-exclude") for hook in local["hooks"]}
    checked = {line.removesuffix(" .").replace("--check", "").strip() for line in CI_RUN.splitlines()}
    assert entries == {"ruff check", "ruff format", "mypy"} <= checked


def test_the_citation_is_of_this_version() -> None:
    citation = read("CITATION.cff")
    assert citation["version"] == PROJECT["version"] == vlprompt.__version__
    assert (citation["license"], citation["keywords"]) == (PROJECT["license"], PROJECT["keywords"])


def test_the_source_distribution_has_what_its_pages_and_tests_name() -> None:
    assert all((ROOT / name).exists() for name in SDIST)
    assert {"CITATION.cff", "CONTRIBUTING.md", PROJECT["readme"], *PROJECT["license-files"]} <= set(SDIST)
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    linked = re.findall(r"\]\(([^):#]+)\)", contributing)
    assert linked
    assert all((ROOT / name).exists() for name in linked)
    assert all(any(f"{name}/".startswith(f"{part}/") for part in SDIST) for name in linked)


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_issue_forms_are_forms(path: Path) -> None:
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.stem == "config":
        assert set(form) <= {"blank_issues_enabled", "contact_links"}
        return
    assert {"name", "description", "body"} <= set(form) <= {"name", "description", "title", "labels", "body"}
    ids = [part["id"] for part in form["body"] if part["type"] != "markdown"]
    assert len(ids) == len(set(ids))
    optional = {"description", "placeholder", "value"}
    allowed = {"markdown": ({"value"}, set()), "input": ({"label"}, optional),
               "textarea": ({"label"}, optional | {"render"}), "dropdown": ({"label", "options"}, {"description"}),
               "checkboxes": ({"label", "options"}, {"description"})}  # fmt: skip
    for part in form["body"]:
        needed, more = allowed[part["type"]]
        assert needed <= set(part["attributes"]) <= needed | more, part
        assert set(part) <= {"type", "id", "attributes", "validations"}
    assert any(part.get("validations", {}).get("required") for part in form["body"])


def test_who_has_other_numbers_is_asked_for_the_record() -> None:
    form = read(".github/ISSUE_TEMPLATE/numbers.yml")
    record = next(part for part in form["body"] if part.get("id") == "record")
    assert "result.json" in record["attributes"]["description"]
    assert record["validations"]["required"]


def test_vulnerabilities_are_reported_privately() -> None:
    for path in ("CONTRIBUTING.md", ".github/ISSUE_TEMPLATE/bug.yml"):
        assert re.search(r"privately.*SECURITY\.md", (ROOT / path).read_text(encoding="utf-8"), re.DOTALL), path
