"""What files of settings say about themselves: complete, shown, and no part of any run."""

import re
from pathlib import Path

import pytest
import yaml

from vlprompt.config.about import FAMILIES, about, display_name, paths
from vlprompt.config.compose import read_run
from vlprompt.errors import UnknownSettingError, UserError


@pytest.mark.parametrize("group", ["method", "backbone", "protocol", "dataset"])
def test_every_file_says_what_it_is(group: str) -> None:
    everything = {name: about(group, name) for name in paths(group) if name != "folder"}
    names = [one.name for one in everything.values()]
    assert len(names) == len(set(names))
    for name, one in everything.items():
        assert one.family, name
        assert one.name != name, name
        if group == "method":
            assert one.family in FAMILIES
            assert re.fullmatch(r".+, (.+ )?20\d\d", one.paper)
            assert re.match(r"https://(arxiv\.org/abs/\d{4}\.\d{5}$|openaccess\.thecvf\.com/)", one.source)


def test_names_of_learners() -> None:
    assert display_name("coop") == display_name("coop", None) == "CoOp"
    assert display_name("vpt_deep", "n_tokens=4") == "VPT-Deep (n_tokens=4)"
    assert display_name("vpt_deep@method.n_tokens=4,fit.lr=0.1") == "VPT-Deep (n_tokens=4, fit.lr=0.1)"
    assert display_name("zero_shot", "my name") == "CLIP (my name)"
    for gone in ("of_a_stranger", "../method/coop", "coop.yaml", "", "a/b", "<b>"):
        assert display_name(gone) == gone
        assert about("dataset", gone).paper is None


def test_names_of_a_stranger(tmp_path: Path) -> None:
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_text("about: {name: Mine}\nmethod: {}", encoding="utf-8")
    (tmp_path / "method" / "derived.yaml").write_text("defaults: [coop, _self_]", encoding="utf-8")
    (tmp_path / "method" / "coop.yaml").write_text("about: {name: CoOp 2, family: new}", encoding="utf-8")
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "pets.yaml").write_text("dataset: {name: pets}", encoding="utf-8")
    of_mine = (tmp_path,)
    assert about("method", "mine", of_mine).name == "Mine"
    assert about("method", "mine").name == "mine"
    assert about("method", "derived", of_mine).name == "derived"
    assert (about("method", "coop", of_mine).family, about("method", "lora", of_mine).name) == ("new", "LoRA")
    assert about("dataset", "pets", of_mine).name == "pets"


@pytest.mark.parametrize("text", ["about: 3", "about: {nam: X}", "about: {name: }", "about: {name: 3}", "a: [", "\xff"])
def test_a_broken_file_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "method").mkdir()
    path = tmp_path / "method" / "mine.yaml"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=re.escape(str(path))):
        about("method", "mine", (tmp_path,))


@pytest.mark.parametrize(
    "override",
    ["about.name=x", "about={name: x}", "backbone.about.name=x", "protocol.about.paper=x", "+about.new=x", "++about=1"],
)
def test_what_a_file_says_cannot_be_set(override: str) -> None:
    with pytest.raises(UnknownSettingError, match="about"):
        read_run([override])


@pytest.mark.parametrize("said", [{"name": "Mine", "family": "new"}, 3])
def test_no_run_knows_what_its_files_say(said: object, tmp_path: Path) -> None:
    """Nor does its record; files of a stranger may say nothing, or nonsense."""
    bases = {"method": "coop", "protocol": "few_shot", "backbone": "shapes_vit"}

    def spec(folder: Path, about: dict[str, object]):
        for group, base in bases.items():
            node = yaml.safe_load(paths(group)[base].read_text(encoding="utf-8"))
            del node["about"]
            (folder / group).mkdir(parents=True)
            package = "# @package _global_\n" if group == "method" else ""
            (folder / group / "mine.yaml").write_text(package + yaml.safe_dump({**about, **node}), encoding="utf-8")
        return read_run([f"hydra.searchpath=[{folder}]", "dataset=digits", *(f"{group}=mine" for group in bases)])

    silent, told, ours = (
        spec(tmp_path / "a", {}),
        spec(tmp_path / "b", {"about": said}),
        read_run(["dataset=digits", *(f"{group}={name}" for group, name in bases.items()), "~recipe", "~demo"]),
    )
    assert (told.hash, told.config, told.key) == (silent.hash, silent.config, silent.key)
    assert ours.hash == silent.hash
    assert "about" not in {*ours.config, *ours.config["protocol"], *ours.config["backbone"], *ours.config["dataset"]}
