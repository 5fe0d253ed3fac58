"""Checkpoints, logs and few-shot lists of the CoOp family, read into the forms used here."""

import builtins
import hashlib
import io
import json
import pickle
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import dassl_files as dassl
import pytest
import running
import safetensors.torch
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from running import Answer
from test_parity import tiny_clip  # noqa: F401
from torch import Tensor

from vlprompt import cli
from vlprompt.config.locate import locate
from vlprompt.interop.dassl import trained
from vlprompt.interop.dassl.facts import facts_of_path, read_options
from vlprompt.interop.dassl.trained import read_dataset
from vlprompt.learners.base import Learner
from vlprompt.protocols.base_to_novel import halves
from vlprompt.results import learner_files as saved
from vlprompt.results.record import Record
from vlprompt.results.store import find_records
from vlprompt.towers import Images
from vlprompt.towers.geometry import read_geometry

FIXTURES = Path(__file__).parent / "fixtures"
CASES = FIXTURES / "parity" / "cases"


def ask(*arguments: object) -> Answer:
    """`vlprompt import ...`; anything but a UserError comes through."""
    return running.ask(cli.main, ["import", *map(str, arguments)])


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with the results root in it."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("VLPROMPT_RESULTS", str(folder / "results"))
    return folder


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Models this small only wait for each other's threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


# Trained prompts


@pytest.fixture
def tiny_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--backbone tiny` is the model of the parity cases."""
    shape = json.loads((FIXTURES / "parity" / "clip_tiny.json").read_text())
    image = {"image_size": shape["image_size"], "width": shape["vision_width"], "layers": shape["vision_layers"]}
    text = {"width": shape["text_width"], "layers": shape["text_layers"]}
    config = {"model_cfg": {"embed_dim": shape["embed_dim"], "vision_cfg": image, "text_cfg": text}}
    folder = tmp_path / "tiny"
    dassl.write(folder / "open_clip_config.json", json.dumps(config))
    monkeypatch.setattr(
        trained, "read_backbone", lambda name: ({"model": "tiny", "weights": "w"}, read_geometry(str(folder), "w"))
    )


class Trial(NamedTuple):
    """A case, and how its checkpoint and command look."""

    case: str
    method: str
    arguments: dict[str, Any]
    flags: tuple[str, ...] = ()
    folder: str = "seed1/prompt_learner"


def ivlp(n_context: int, depth: int, n_tokens: int, image_depth: int) -> dict[str, Any]:
    text = {"n_context": n_context, "ctx_init": "a photo of a", "depth": depth}
    return text | {"n_tokens": n_tokens, "image_depth": image_depth}


VPT = {"head": "text", "template": "a photo of a {}.", "init": "normal", "project": None, "dropout": 0.0}
COOP = {"n_context": 4, "ctx_init": "", "class_specific": False, "position": "end"}
PROGRAD = {"n_context": 16, "init": "template", "template": "a type of pet, a photo of a {}.",
           "class_specific": False, "position": "end"}  # fmt: skip
TRIALS = [
    Trial("coop_m4", "coop", COOP),
    Trial("coop_csc_m4", "coop", COOP | {"class_specific": True}),
    Trial("coop_middle_m4", "coop", COOP | {"position": "middle"}, folder="nctx4_cscFalse_ctpmiddle/seed1/x"),
    Trial("coop_front_m4", "coop", COOP | {"position": "front"}, flags=("--position", "front")),
    Trial("kgcoop", "coop", COOP),
    Trial("prograd_pets_m16", "prograd", PROGRAD, folder="oxford_pets/ProGrad/rn50_16shots/nctx16_ctpend/seed1/x"),
    Trial("prograd_pets_m16", "prograd", PROGRAD,
          flags=("--method", "prograd", "--ctx-init", "a type of pet, a photo of a", "--position", "end")),
    Trial("cocoop_m4", "cocoop", {"n_context": 4, "ctx_init": "", "reduction": 16}),
    Trial("cocoop_ctxinit", "cocoop", {"n_context": 4, "ctx_init": "", "reduction": 16}),
    Trial("maple_n2_d3", "maple", {"n_context": 2, "ctx_init": "a photo of a", "depth": 3}),
    Trial("maple_n2_d1", "maple", {"n_context": 2, "ctx_init": "a photo of a", "depth": 1}),
    Trial("maple_n5_d2_random", "maple", {"n_context": 5, "ctx_init": "", "depth": 2}),
    Trial("ivlp_2x2_d3", "ivlp", ivlp(2, 3, 2, 3)),
    Trial("ivlp_asym", "ivlp", ivlp(4, 4, 3, 2)),
    Trial("ivlp_language_only", "language_prompts", ivlp(4, 3, 0, 0)),
    Trial("promptsrc", "ivlp", ivlp(4, 3, 4, 3)),
    Trial("vpt_deep_d3", "vpt_deep", {"n_tokens": 4, "depth": 3, **VPT}),
    Trial("vpt_shallow", "vpt_shallow", {"n_tokens": 4, "depth": 1, **VPT}),
]  # fmt: skip


def original_tensors(clip: Any, case: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the original would save after the run `paper`: the prompt learner alone, or the whole model."""
    method = case["config"]["method"]
    last = f"paper.param{case['runs']['paper']['steps']}."
    saved = {name.removeprefix(last): tensor for name, tensor in tensors.items() if name.startswith(last)}
    if (context := saved.get("prompt_learner.ctx")) is not None:
        embedded = clip.text.embed(tensors["inputs.token_ids"].long())
        saved["prompt_learner.token_prefix"] = embedded[:, :1]
        saved["prompt_learner.token_suffix"] = embedded[:, 1 + context.shape[-2] :]
    if method in ("CoOp", "CoCoOp", "KgCoOp", "ProGrad"):
        saved = {name.removeprefix("prompt_learner."): tensor for name, tensor in saved.items()}
        return saved | ({"bias_vectors": torch.zeros(1, 8)} if method == "KgCoOp" else {})
    frozen = {"image_encoder.conv1.weight": torch.zeros(2), "text_encoder.positional_embedding": torch.zeros(2)}
    if method == "PromptSRC":
        frozen["prompt_learner.ZS_image_encoder.proj"] = torch.zeros(2)
    return saved | frozen | {"logit_scale": torch.zeros(())}


def rebuild(clip: Any, folder: Path) -> Learner:
    """A learner from the folder alone."""
    config = saved.read_config(folder)
    kind, arguments = locate({"_target_": config["target"], **config["arguments"]}, Learner, "method")
    learner = kind(clip, config["classes"], **arguments).eval()
    saved.load_tensors(learner, folder)
    return learner


@pytest.mark.usefixtures("tiny_backbone")
@pytest.mark.parametrize("trial", TRIALS, ids=[trial.case for trial in TRIALS])
def test_imported_prompts_give_the_original_logits(trial: Trial, here: Path, tiny_clip: Any) -> None:  # noqa: F811
    case = json.loads((CASES / f"{trial.case}.json").read_text())
    tensors = safetensors.torch.load_file(CASES / f"{trial.case}.safetensors")
    state = original_tensors(tiny_clip, case, tensors)
    path = dassl.write_checkpoint(here / trial.folder / "model.pth.tar-7", state, epoch=7)
    classes = dassl.write(here / "classes.txt", "\n".join(case["config"]["classnames"]) + "\n")
    answer = ask(path, "--output", "out", "--classes", classes, "--backbone", "tiny", *trial.flags)
    assert answer.code == 0, answer.err
    config = saved.read_config(here / "out")
    assert (config["method"], config["arguments"]) == (trial.method, trial.arguments)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert config["origin"] == {"file": str(path), "sha256": digest, "epoch": 7, "form": case["config"]["method"]}
    learner = rebuild(tiny_clip, here / "out")
    assert {p.dtype for p in learner.parameters()} == {torch.float32}
    with torch.no_grad():
        for name, images in (("train", "images"), ("eval", "eval_images")):
            logits = learner.logits(Images(tensors[f"inputs.{images}"].float()), learner.encode_classes())
            expected = tensors[f"paper.logits_final_{name}_images"]
            torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


COOP_STATE = {"ctx": torch.randn(4, 512).half(), "token_prefix": torch.randn(3, 1, 512).half(),
              "token_suffix": torch.randn(3, 72, 512).half()}  # fmt: skip
PUBLISHED = "base2new/train_base/oxford_flowers/shots_16/CoOp/vit_b16_ctxv1/seed1/prompt_learner/model.pth.tar-50"


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_published_tree_tells_backbone_and_data_set(here: Path, zipped: bool) -> None:
    path = dassl.write_checkpoint(here / PUBLISHED, COOP_STATE, zipped=zipped)
    classes = dassl.write(here / "classes.txt", "pink primrose\nfire_lily\nsword lily\n")
    answer = ask(path, "--classes", classes)
    assert answer.code == 0, answer.err
    (folder,) = (here / "results" / "imported").iterdir()
    config = saved.read_config(folder)
    assert config["classes"] == ["pink primrose", "fire_lily", "sword lily"]
    assert config["backbone"] == {"model": "ViT-B-16-quickgelu", "weights": "openai"}
    assert (config["dataset"], config["protocol"], config["split_hash"]) == ("flowers102", "base_to_novel", None)
    assert (config["preprocess"]["size"], config["origin"]["form"]) == (224, "CoOp")
    tensors = safetensors.torch.load_file(folder / saved.TENSORS)
    assert torch.equal(tensors["context"], COOP_STATE["ctx"].float())
    assert "--position" in answer.err


def test_what_an_import_needs_is_asked_for(here: Path) -> None:
    path = dassl.write_checkpoint(here / "model.pth.tar-50", COOP_STATE)
    assert "--backbone" in ask(path).err
    two = dassl.write(here / "c", "a\nb\n")
    assert "3 classes, 2 are given" in ask(path, "--backbone", "vit_b16", "--classes", two).err
    assert "unknown backbone" in ask(path, "--backbone", "vit_b17").err
    assert "text width 512, shapes_vit has" in ask(path, "--backbone", "shapes_vit").err
    assert "no --images" in ask(path, "--images", "x").err
    specific = dassl.write_checkpoint(here / "csc" / "model.pth.tar-50", COOP_STATE | {"ctx": torch.randn(3, 4, 512)})
    assert "--classes" in ask(specific, "--backbone", "rn50").err
    assert files(here) == {"model.pth.tar-50", "csc/model.pth.tar-50", "c"}


def test_an_ambiguous_checkpoint_names_its_candidates(here: Path) -> None:
    state = {"prompt_learner.ctx": torch.randn(4, 512), "image_encoder.conv1.weight": torch.zeros(768, 3, 16, 16),
             "logit_scale": torch.zeros(())}  # fmt: skip
    path = dassl.write_checkpoint(here / "model.pth.tar-5", state)
    answer = ask(path)
    assert answer.code == 2
    assert "coop or ivlp or language_prompts" in answer.err
    assert ask(path, "--method", "maple").code == 2
    assert ask(path, "--method", "language_prompts", "--output", "text").code == 0
    assert saved.read_config(here / "text")["arguments"]["depth"] == 1
    assert saved.read_config(here / "text")["backbone"]["model"] == "ViT-B-16-quickgelu"
    assert ask(path, "--method", "coop", "--output", "coop").code == 0
    assert saved.read_config(here / "coop")["method"] == "coop"


CONTEXT, PROJECTION = torch.zeros(2, 512), torch.zeros(768, 512)
MAPLE = {"ctx": CONTEXT, "proj.weight": PROJECTION, "proj.bias": torch.zeros(768)}
DEEPER = {"compound_prompt_projections.0.weight": PROJECTION, "compound_prompt_projections.0.bias": torch.zeros(768),
          "compound_prompts_text.0": torch.zeros(2, 300)}  # fmt: skip
WIDE = {"ctx": torch.zeros(2, 768), "proj.weight": torch.zeros(768, 768), "proj.bias": torch.zeros(768)}
FIRST = {"image_encoder.VPT": torch.zeros(2, 768)}
LAYER = "image_encoder.transformer.resblocks.{}.VPT_shallow"


@pytest.mark.parametrize(
    ("state", "words", "backbone"),
    [
        ({"ctx": CONTEXT, "prefix_MLP.weight": PROJECTION}, "no method", "vit_b16"),
        ({"ctx": CONTEXT, "proj.weight": PROJECTION}, "'coupling.0.bias' is missing", "vit_b16"),
        (MAPLE | DEEPER, "[2, 300], needed [2, 512]", "vit_b16"),
        ({"ctx": CONTEXT * float("nan")}, "not finite", "vit_b16"),
        ({"ctx": torch.zeros(1, 1).expand(10**6, 512)}, "claims more", "vit_b16"),
        ({"ctx": CONTEXT.long()}, "real numbers", "vit_b16"),
        (WIDE, "text width 768, vit_b16", "vit_b16"),
        (WIDE, "image width 768, vit_l14", "vit_l14"),
        (MAPLE, "has none", "rn50"),
        (FIRST | {LAYER.format(2): torch.zeros(2, 768)}, "for the layers [0, 2]", "vit_b16"),
        (FIRST | {LAYER.format(i): torch.zeros(2, 768) for i in range(1, 14)}, "14 layers", "vit_b16"),
    ],
)
def test_prompts_that_make_no_learner_are_refused(
    here: Path, state: dict[str, Tensor], words: str, backbone: str
) -> None:
    path = dassl.write_checkpoint(here / "model.pth.tar-1", state)
    answer = ask(path, "--backbone", backbone, "--output", "out")
    assert answer.code == 2
    assert words in answer.err
    assert not (here / "out").exists()


def test_the_initial_phrase_is_read_off_the_text_or_the_log_or_asked_for(here: Path) -> None:
    same, rest = torch.randn(1, 1, 512).expand(3, 3, 512), torch.randn(3, 72, 512)
    maple = {"prompt_learner.ctx": torch.randn(2, 512), "prompt_learner.proj.weight": torch.zeros(768, 512),
             "prompt_learner.proj.bias": torch.zeros(768), "logit_scale": torch.zeros(())}  # fmt: skip

    def phrase(common: int | None, *flags: str, log: str = "") -> str:
        suffix = (
            {"prompt_learner.token_suffix": torch.cat([same[:, :common], rest], 1)[:, :74]}
            if common is not None
            else {}
        )
        path = dassl.write_checkpoint(here / "seed1" / "MultiModalPromptLearner" / "model.pth.tar-5", maple | suffix)
        dassl.write(here / "seed1" / "log.txt", log)
        answer = ask(path, "--backbone", "vit_b16", "--output", "out", "--force", *flags)
        return saved.read_config(here / "out")["arguments"]["ctx_init"] if answer.code == 0 else answer.err

    assert phrase(2) == phrase(None) == "a photo of a"
    assert phrase(0) == ""
    assert "--ctx-init" in phrase(3)
    assert phrase(3, "--ctx-init", "a_photo of one") == "a photo of one"
    assert phrase(2, "--ctx-init", "") == ""
    assert "has 1 words" in phrase(2, "--ctx-init", "photo")
    assert phrase(1, log=dassl.head(trainer="MaPLe", options={"CTX_INIT": "this is a"})) == "this is a"


def test_prograd_needs_its_data_set_where_its_phrase_leaves_tokens(here: Path) -> None:
    """These texts go on with the same token after the context."""
    suffix = torch.cat([torch.ones(3, 1, 512), torch.randn(3, 71, 512)], 1)
    path = dassl.write_checkpoint(here / "model.pth.tar-50", COOP_STATE | {"token_suffix": suffix})
    order = (path, "--method", "prograd", "--backbone", "vit_b16", "--output", "out")
    assert "--dataset" in ask(*order).err
    assert ask(*order, "--ctx-init", "").code == 0
    assert saved.read_config(here / "out")["arguments"]["init"] == "random"
    dassl.write_checkpoint(path, COOP_STATE | {"token_suffix": suffix[:, 1:]})
    answer = ask(*order, "--force")
    assert (answer.code, "--ctx-init" in answer.err) == (0, True)
    assert saved.read_config(here / "out")["arguments"]["template"] == "a photo of a {}."


def test_a_checkpoint_of_tcp_is_no_cocoop(here: Path) -> None:
    """Their tensors have the same names."""
    names = ("meta_net.linear1.weight", "meta_net.linear1.bias", "meta_net.linear2.weight", "meta_net.linear2.bias")
    path = dassl.write_checkpoint(
        here / "TCP" / "vit_b16_ep100_ctxv1" / "seed1" / "prompt_learner" / "model.pth.tar-50",
        COOP_STATE | dict.fromkeys(names, torch.zeros(2)),
    )
    answer = ask(path, "--backbone", "vit_b16", "--output", "out")
    assert answer.code == 2
    assert "is of TCP" in answer.err
    assert "CoCoOp" not in answer.err


def test_an_existing_output_is_kept_unless_forced(here: Path) -> None:
    path = dassl.write_checkpoint(here / "model.pth.tar-50", COOP_STATE)
    order = (path, "--backbone", "rn50", "--output", "out")
    assert ask(*order).code == 0
    before = (here / "out" / saved.TENSORS).read_bytes()
    dassl.write_checkpoint(path, COOP_STATE | {"ctx": torch.zeros(4, 512)})
    assert "--force" in ask(*order).err
    assert (here / "out" / saved.TENSORS).read_bytes() == before
    assert ask(*order, "--force").code == 0
    assert (here / "out" / saved.TENSORS).read_bytes() != before
    other = dassl.write(here / "mine" / "thesis.tex", "text")
    assert "choose another" in ask(path, "--backbone", "rn50", "--output", "mine", "--force").err
    assert files(here / "mine") == {other.name}


def test_class_names_come_from_a_data_set_and_its_half(here: Path) -> None:
    state = COOP_STATE | {"token_suffix": torch.randn(20, 72, 512), "token_prefix": torch.randn(20, 1, 512)}
    dassl.write_checkpoint(here / "model.pth.tar-50", state)
    answer = ask(here, "--backbone", "vit_b16", "--dataset", "shapes", "--half", "base", "--output", "out")
    assert answer.code == 0, answer.err
    config = saved.read_config(here / "out")
    shapes = read_dataset("shapes")
    assert config["classes"] == [shapes.classes[label] for label in halves(shapes)[0]]
    assert (config["dataset"], config["protocol"], len(config["split_hash"])) == ("shapes", "base_to_novel", 64)
    assert "--half base" in ask(here, "--backbone", "vit_b16", "--dataset", "shapes").err
    assert "unknown data set" in ask(here, "--backbone", "vit_b16", "--dataset", "shape").err
    dassl.write_checkpoint(here / "model.pth.tar-20", state)
    assert "2 checkpoints" in ask(here, "--backbone", "vit_b16").err


# Results

LOG = "base2new/{}/oxford_pets/shots_16/MaPLe/vit_b16_c2_ep5_batch4_2ctx/seed{}/log.txt"


def test_base_and_novel_logs_make_one_record(here: Path) -> None:
    head = dassl.head(trainer="MaPLe", dataset="OxfordPets", seed=2)
    val = dassl.result("12.3", part="val")
    dassl.write(here / LOG.format("train_base", 2), head + val + dassl.TRAINING + dassl.END + dassl.result("97.3"))
    test = dassl.head(trainer="MaPLe", dataset="OxfordPets", seed=2, half="new", eval_only=True)
    dassl.write(
        here / LOG.format("test_new", 2),
        test + dassl.result("97.65", total="1,788", correct="1,746", macro_f1="97.60"),
    )
    dassl.write(here / LOG.format("train_base", 3), dassl.TRAINING + dassl.result("90.0"))  # stopped half way
    answer = ask(here)
    assert answer.code == 0, answer.err
    assert "did not finish" in answer.err
    folder = here / "results/runs/base_to_novel/oxford_pets/vit_b16/maple@imported/shots16/seed2"
    record = Record.read(folder)
    assert record is not None
    assert (record.status, record.weights, record.precision) == ("finished", "openai", "fp16")
    assert (record.variant, record.config_hash) == ("imported", "")  # and so never our finished run
    assert not record.key.model_copy(update={"variant": None}).folder(here / "results").exists()
    assert record.scores == {
        "base": {"accuracy": 1507 / 1549, "total": 1549, "correct": 1507, "macro_f1": pytest.approx(0.957)},
        "novel": {"accuracy": 1746 / 1788, "total": 1788, "correct": 1746, "macro_f1": pytest.approx(0.976)},
    }
    assert {split: source["decimals"] for split, source in record.imported.items()} == {"base": 1, "novel": 2}
    log = here / LOG.format("train_base", 2)
    assert record.imported["base"]["sha256"] == hashlib.sha256(log.read_bytes()).hexdigest()
    assert len(find_records([here / "results"])) == 1


def test_the_table_shows_imported_rows_as_such(here: Path) -> None:
    for seed in (1, 2):
        log = dassl.head(seed=seed) + dassl.result(f"9{seed}.0", total="100", correct=f"9{seed}")
        assert ask(dassl.write(here / LOG.format("train_base", seed), log)).code == 0
    out = running.ask(cli.main, ["table", "--format", "markdown"]).out
    row = next(line for line in out.splitlines() if line.startswith("| coop"))
    assert "imported" in row
    assert "91.50 ± 0.71" in row
    assert "read from logs" in out


def test_base_comes_before_novel_whichever_is_imported_first(here: Path) -> None:
    novel = dassl.head(half="new", eval_only=True) + dassl.result("60.0", total="10", correct="6")
    assert ask(dassl.write(here / LOG.format("test_new", 1), novel)).code == 0
    base = dassl.head(seed=2) + dassl.result("80.0", total="10", correct="8")
    assert ask(dassl.write(here / LOG.format("train_base", 2), base)).code == 0
    out = running.ask(cli.main, ["table", "--format", "csv"]).out
    header, row = (line.split(",") for line in out.splitlines())
    assert header.index("base") < header.index("novel")
    assert float(row[header.index("H")]) == pytest.approx(2 * 80 * 60 / 140)


def test_the_published_parser_and_this_one_agree(here: Path) -> None:
    expected = json.loads((FIXTURES / "data" / "parse_expected.json").read_text())["numbers"]
    told = ("--dataset", "caltech101", "--method", "coop", "--shots", "16", "--backbone", "vit_b16")
    for half in ("base", "new"):
        answer = ask(FIXTURES / "data" / "parse" / half, *told)
        assert answer.code == 0, answer.err
        assert "its counts do not give" in answer.err  # one correct of a thousand, and yet 87.6%
    records = sorted(find_records([here / "results"]), key=lambda record: record.seed)
    assert [record.seed for record in records] == [1, 2, 3]
    for half, split in (("base", "base"), ("new", "novel")):
        for score in ("accuracy", "macro_f1"):
            values = [100 * record.scores[split][score] for record in records]
            assert values == pytest.approx(expected[f"{half}|{score}"]["values"], abs=1e-9)


def test_what_a_log_does_not_tell_is_asked_for(here: Path) -> None:
    path = dassl.write(here / "log.txt", dassl.result("97.3"))
    answer = ask(path)
    assert answer.code == 2
    assert "--dataset, --method, --backbone, --split, --protocol, --shots, --seed" in answer.err
    flags = ("--dataset", "mine", "--method", "coop", "--backbone", "rn50", "--split", "test", "--shots", "all")
    assert ask(path, *flags, "--seed", "0").code == 0
    assert (here / "results/runs/few_shot/mine/rn50/coop@imported/shotsall/seed0/result.json").is_file()
    assert "cannot name a folder" in ask(path, *flags, "--seed", "0", "--name", "../up").err
    assert "no such" not in answer.err


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no result"),
        ("hello\n", "no result"),
        (dassl.TRAINING + dassl.result("90.0"), "did not finish"),
        (dassl.result("90.0") + dassl.TRAINING + dassl.END, "no result"),
        (dassl.TRAINING + dassl.END + dassl.result("90.0", part="val"), "validation"),
        ("=> result\n* total: 3\n", "no accuracy"),
        ("=> result\n* accuracy: nan%\n", "no accuracy"),
        ("=> result\n* accuracy: 187.6%\n", "no accuracy"),
    ],
)
def test_logs_without_a_final_result_are_refused(here: Path, text: str, reason: str) -> None:
    answer = ask(dassl.write(here / "log.txt", text))
    assert answer.code == 2
    assert reason in answer.err
    assert files(here) == {"log.txt"}


def test_a_log_next_to_its_record_is_not_read_back(here: Path) -> None:
    path = dassl.write(here / "run" / "log.txt", dassl.result("97.3"))
    dassl.write(here / "run" / "result.json", "{}")
    assert ask(path).code == 2


def test_other_results_of_the_same_cell_stay_separate(here: Path) -> None:
    first = dassl.write(here / "a" / LOG.format("train_base", 1), dassl.head() + dassl.result("97.3"))
    second = dassl.write(here / "b" / LOG.format("train_base", 1), dassl.head() + dassl.result("90.0", correct="1,394"))
    assert "--name" in ask(here).err
    assert ask(first).code == ask(first).code == 0  # the same log again is no conflict
    assert "--force" in ask(second).err
    assert ask(second, "--name", "rerun").code == 0
    assert {record.learner for record in find_records([here / "results"])} == {"coop@imported", "coop@imported-rerun"}
    assert ask(second, "--force").code == 0
    accuracies = [record.scores["base"]["accuracy"] for record in find_records([here / "results"])]
    assert accuracies == [1394 / 1549] * 2


def test_methods_and_protocols_are_recognised(here: Path) -> None:
    def cell(**told: Any) -> tuple[Any, ...]:
        log = dassl.write(here / "x" / "log.txt", dassl.head(**told) + dassl.result("50.0", total="2", correct="1"))
        assert ask(log, "--output", "r").code == 0
        (record,) = find_records([here / "r"])
        for path in (here / "r").rglob("result.json"):
            path.unlink()
        return record.protocol, record.dataset, record.method, record.shots, record.seed, *record.scores

    depth = {"PROMPT_DEPTH_VISION": 1}
    assert cell(half="all", shots=4) == ("few_shot", "caltech101", "coop", 4, 1, "test")
    assert cell(trainer="ZeroshotCLIP", half="new") == ("base_to_novel", "caltech101", "zero_shot", 0, 0, "novel")
    assert cell(trainer="VPT", options=depth)[2] == "vpt_shallow"
    assert cell(trainer="PromptSRC", shots=-1)[2:4] == ("promptsrc", "all")
    assert cell(trainer="New-Method")[2] == "new-method"
    xd = {"half": "all", "eval_only": True, "model_dir": "output/imagenet/CoOp/vit_b16_ep50/seed1"}
    assert cell(dataset="OxfordFlowers", **xd) == ("cross_dataset", "imagenet", "coop", 16, 1, "flowers102")
    assert cell(dataset="ImageNetV2", **xd)[::5] == ("domain_generalization", "imagenet_v2")


def test_heads_and_paths_are_read_as_published() -> None:
    options = read_options(dassl.head(options={"CTX_INIT": "a photo of a", "N_CTX": 4}))
    assert options["TRAINER.COOP.CTX_INIT"] == "a photo of a"
    assert options["SEED"] == options["seed"] == "1"  # and not the 9 that follows the configuration
    facts = facts_of_path(Path("/x/output/caltech101/CoOp/rn50_ep50_4shots/nctx16_cscFalse_ctpmiddle/seed3/log.txt"))
    told = (facts.dataset, facts.trainer, facts.shots, facts.seed, facts.half, facts.backbone, facts.position)
    assert told == ("caltech101", "CoOp", 4, 3, None, "rn50", "middle")
    script = "output_1108_4_eval/base2new/test_new/oxford_pets/shots_16_1.0/TCP/vit_b16_ep100_ctxv1/seed2/log.txt"
    facts = facts_of_path(Path("/x") / script)
    told = (facts.dataset, facts.method, facts.shots, facts.seed, facts.half, facts.backbone)
    assert told == ("oxford_pets", "tcp", 16, 2, "novel", "vit_b16")


# Few-shot lists

ROOT = "/home/somebody/data/caltech-101/101_ObjectCategories/"
LISTS = {
    "train": [(ROOT + "Faces/image_0201.jpg", 0, "face"), (ROOT + "wild_cat/image_0001.jpg", 1, "wild_cat")],
    "val": [(ROOT + "Faces/image_0002.jpg", 0, "face")],
}
ROWS = [
    {"split": "train", "path": "Faces/image_0201.jpg", "label": 0, "classname": "face"},
    {"split": "train", "path": "wild_cat/image_0001.jpg", "label": 1, "classname": "wild_cat"},
    {"split": "val", "path": "Faces/image_0002.jpg", "label": 0, "classname": "face"},
]


def write_pickle(folder: Path, content: bytes) -> Path:
    (folder / "shot_16-seed_1.pkl").write_bytes(content)
    return folder / "shot_16-seed_1.pkl"


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("module", dassl.DATUM_MODULES)
@pytest.mark.parametrize("images", [None, "101_ObjectCategories", ROOT, "/elsewhere/101_ObjectCategories"])
def test_a_few_shot_pickle_becomes_a_list(here: Path, module: str, images: str | None) -> None:
    path = write_pickle(here, dassl.few_shot_pickle(LISTS, module))
    answer = ask(path, *([] if images is None else ["--images", images]))
    assert answer.code == 0, answer.err
    assert rows(here / "shot_16-seed_1.jsonl") == ROWS
    assert ROOT.rstrip("/") in answer.out
    assert ("--images" in answer.err) == (images is None)


def test_where_paths_begin_is_told_or_found(here: Path) -> None:
    one_class = {"train": [(ROOT + "Faces/image_0201.jpg", 0, "face")], "val": []}
    path = write_pickle(here, dassl.few_shot_pickle(one_class))
    assert ask(path).code == 0
    assert rows(here / "shot_16-seed_1.jsonl")[0]["path"] == "image_0201.jpg"  # the longest that all share
    assert "--force" in ask(path).err
    assert ask(path, "--images", "101_ObjectCategories", "--output", "b.jsonl").code == 0
    assert rows(here / "b.jsonl")[0]["path"] == "Faces/image_0201.jpg"
    assert "does not lie below 'images'" in ask(path, "--images", "images", "--force").err
    windows = {"train": [("D:\\data\\dtd\\images\\banded\\x.jpg", 0, "banded")]}
    path = write_pickle(here, dassl.few_shot_pickle(windows))
    assert ask(path, "--images", "images", "--force").code == 0
    assert rows(here / "shot_16-seed_1.jsonl")[0]["path"] == "banded/x.jpg"
    up = {"train": [("/data/images/../../x.jpg", 0, "a")]}
    path = write_pickle(here, dassl.few_shot_pickle(up))
    assert "does not lie below" in ask(path, "--images", "images", "--force").err


# Nothing is executed


def bomb(marker: Path) -> Any:
    return dassl.Payload(builtins.exec, f"open({str(marker)!r}, 'w').close()")


def check_refused(path: Path, marker: Path, *flags: str) -> None:
    answer = ask(path, *flags)
    assert answer.code == 2
    assert "nothing of it was executed" in answer.err
    assert not marker.exists()
    assert files(path.parent) == {path.name}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("where", ["state_dict", "epoch", "val_result"])
def test_a_checkpoint_with_a_payload_is_refused(here: Path, tmp_path: Path, zipped: bool, where: str) -> None:
    marker = tmp_path / "executed"
    content = {"state_dict": COOP_STATE, "epoch": 50, where: bomb(marker)}
    torch.save(content, here / "model.pth.tar-50", _use_new_zipfile_serialization=zipped)
    torch.load(here / "model.pth.tar-50", weights_only=False)
    assert marker.exists()  # it would have been
    marker.unlink()
    check_refused(here / "model.pth.tar-50", marker, "--backbone", "vit_b16")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("where", ["whole", "list", "datum"])
def test_a_pickle_with_a_payload_is_refused(here: Path, tmp_path: Path, protocol: int, where: str) -> None:
    marker = tmp_path / "executed"
    shots = {"train": [bomb(marker)]} if where == "list" else {"train": [], "val": [], "x": bomb(marker)}
    content = pickle.dumps(bomb(marker) if where == "whole" else shots, protocol=protocol)
    if where == "datum":  # among a file's honest objects: the payload's opcodes without their frame
        honest, inner = dassl.few_shot_pickle(LISTS), pickle.dumps(bomb(marker), protocol=2)[2:-1]
        content = honest[:-1] + inner + b"0."
    if where != "datum":
        pickle.loads(content)
        assert marker.exists()  # it would have been
        marker.unlink()
    check_refused(write_pickle(here, content), marker)


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n.",
        b"cdassl.data.datasets\nDatum\n(S'x'\ntR.",  # calls the one class that is known
        b"\x80\x04r\xff\xff\xff\xff.",  # a memo of 64 GB
        b"(lr\xff\xff\xff\x7f.",
        b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f}.",
        b"\x80\x02Pid\n.",
        b"\x80\x02\x82\x01.",
        pickle.dumps({"train": "Faces"}),
        pickle.dumps({"train": [{"_impath": "/a/b.jpg"}]}),
        pickle.dumps({"train": []}),
        pickle.dumps([1, 2]),
        dassl.few_shot_pickle({"train": [("/a/b.jpg", 10**5000, "x")]}),
        dassl.few_shot_pickle({"train": [("/a/b\n.jpg", 0, "x")]}),
        dassl.few_shot_pickle({"train": [("/a/b.jpg", 0, "\ud800")]}),
        dassl.few_shot_pickle({"test": [("/a/b.jpg", 0, "x")]}),
        b"",
    ],
)  # fmt: skip
def test_pickles_of_other_things_are_refused(here: Path, content: bytes) -> None:
    answer = ask(write_pickle(here, content))
    assert answer.code == 2
    assert len(answer.err.splitlines()) == 1
    assert files(here) == {"shot_16-seed_1.pkl"}


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", "a git-lfs pointer"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"", "an empty file"),
    ],
)
def test_what_is_given_instead_of_a_checkpoint_is_named(here: Path, content: bytes, what: str) -> None:
    (here / "model.pth.tar-1").write_bytes(content)
    answer = ask(here / "model.pth.tar-1", "--backbone", "vit_b16")
    assert answer.code == 2
    assert what in answer.err


def test_archives_that_grow_in_memory_are_refused(here: Path) -> None:
    dassl.write_checkpoint(here / "whole", {"ctx": torch.zeros(400, 512)})
    with (
        zipfile.ZipFile(here / "whole") as old,
        zipfile.ZipFile(here / "model.pth.tar-1", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert "compressed" in ask(here / "model.pth.tar-1").err


FUZZ = settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
EDITS = st.lists(
    st.tuples(st.integers(0, 2**16), st.integers(0, 3), st.binary(min_size=1, max_size=4)), min_size=1, max_size=4
)


def damage(content: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    """Overwrites, inserts, removes or cuts at some offsets."""
    for offset, kind, new in edits:
        at = offset % (len(content) + 1)
        tail = {0: content[at + len(new) :], 1: content[at:], 2: content[at + len(new) :], 3: b""}[kind]
        content = content[:at] + (b"" if kind > 1 else new) + tail
    return content


def check_quiet(here: Path, path: Path, *flags: str, allowed: set[str]) -> None:
    """An import works or is refused; it writes nothing but its output."""
    before = files(here.parent)
    answer = ask(path, *flags)
    assert answer.code in (0, 2)
    written = {name for name in files(here.parent) - before if not any(name.startswith(start) for start in allowed)}
    assert not written
    if answer.code == 2:
        assert answer.err.startswith("error: ")


@FUZZ
@given(content=st.binary(max_size=300), name=st.sampled_from(["model.pth.tar-1", "shot_1-seed_1.pkl", "log.txt", "x"]))
@example(content=b"PK\x03\x04", name="x")
@example(content=b"\x80\x02.", name="model.pth.tar-1")
def test_random_bytes_are_refused(here: Path, content: bytes, name: str) -> None:
    (here / name).write_bytes(content)
    check_quiet(here, here / name, allowed=set())


@pytest.fixture(scope="module")
def small_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("small")
    state = {"ctx": torch.zeros(1, 512).half(), "token_suffix": torch.zeros(2, 1, 512).half()}
    return [dassl.write_checkpoint(folder / str(zipped), state, zipped=zipped).read_bytes() for zipped in (True, False)]


@FUZZ
@given(edits=EDITS, which=st.integers(0, 1), inside=st.booleans())
def test_damaged_checkpoints_import_or_are_refused(
    here: Path, small_checkpoints: list[bytes], edits: list[tuple[int, int, bytes]], which: int, inside: bool
) -> None:
    content = small_checkpoints[which]
    if which == 0 and inside:  # the pickle in the archive, whose check sum is made anew
        archive = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(archive, "w") as new:
            for name in old.namelist():
                new.writestr(name, damage(old.read(name), edits) if name.endswith("data.pkl") else old.read(name))
        content = archive.getvalue()
    else:
        content = damage(content, edits)
    (here / "model.pth.tar-1").write_bytes(content)
    flags = ("--backbone", "vit_b16", "--output", str(here / "out"), "--force")
    check_quiet(here, here / "model.pth.tar-1", *flags, allowed={"here/out/"})


OPCODES = [bytes([code]) for code in range(256)]
PIECES = [b"cdassl.data.datasets\nDatum\n", b"cposix\nsystem\n", b"X\x01\x00\x00\x00a", b"K\x01", b"(", b"}", b"]"]
DAMAGED_LISTS = st.builds(
    lambda edits, module: damage(dassl.few_shot_pickle(LISTS, module), edits),
    EDITS, st.sampled_from(dassl.DATUM_MODULES),
)  # fmt: skip
RANDOM_OPCODES = st.lists(st.one_of(st.sampled_from(OPCODES), st.sampled_from(PIECES)), max_size=12)


@settings(FUZZ, max_examples=120)
@given(content=DAMAGED_LISTS | RANDOM_OPCODES.map(lambda parts: b"\x80\x04" + b"".join(parts) + b"."))
def test_damaged_pickles_and_random_opcodes_import_or_are_refused(here: Path, content: bytes) -> None:
    check_quiet(here, write_pickle(here, content), "--force", allowed={"here/shot_16-seed_1.jsonl"})


@pytest.mark.slow
@FUZZ
@given(edits=EDITS, text=st.text(max_size=40))
def test_damaged_logs_import_or_are_refused(here: Path, edits: list[tuple[int, int, bytes]], text: str) -> None:
    log = dassl.head(options={"CTX_INIT": text}) + dassl.TRAINING + dassl.END + dassl.result("97.3")
    path = here / "log.txt"
    path.write_bytes(damage(log.encode("utf-8", "surrogatepass"), edits))
    check_quiet(here, path, "--force", allowed={"here/results/runs/"})
    shutil.rmtree(here / "results", ignore_errors=True)
