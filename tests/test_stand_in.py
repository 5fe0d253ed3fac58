"""Runs on a stand-in for a GPU, which refuses CPU tensors where it needs its own; its numbers are those of the CPU."""

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stand_in
import tiny
import tiny_world
import torch
import torch.nn.functional as F
from PIL import Image
from running import ask
from torch import Tensor

import vlprompt.run
from vlprompt import cli
from vlprompt.config.compose import read_run
from vlprompt.data.disk import Lock
from vlprompt.data.views import Batches, Views
from vlprompt.errors import ClassBoundError, UserError
from vlprompt.learners.base import Learner
from vlprompt.results import costs
from vlprompt.results.record import Record
from vlprompt.results.store import find_records
from vlprompt.run import run
from vlprompt.towers import Images, Preprocess
from vlprompt.training import lease as leases

ROOT = Path(__file__).resolve().parents[1]
CONF = Path(__file__).parent / "fixtures" / "conf"
TINY = [
    *(f"hydra.searchpath=[file://{CONF}]", "dataset=tiny", "backbone.weights=random", "shots=2"),
    *("workers=0", "force=true"),
]
STEPS = ["++fit.steps=2", "++fit.epochs=null", "bank.views=1"]
FREE = ["method.ctx_init=''", "method.n_context=4"]
METHODS = sorted(path.stem for path in (ROOT / "conf" / "method").glob("*.yaml"))
WITHOUT_STEPS = (
    *("zero_shot", "hard_prompts", "linear_probe", "lp_plus_plus", "tip_adapter", "gda", "ss_text", "cross_modal"),
    "prolip",
)
SHORT = {
    "cross_modal": ["method.iterations=20", "method.batch_sizes=[2,4]"],
    "prolip": ["method.iterations=3", "method.n_views=2"],
}
PROTOCOLS = ("few_shot", "base_to_novel", "cross_dataset", "domain_generalization", "train_val")
TARGETS = {"cross_dataset": "[tiny_other]", "domain_generalization": "[tiny_sketch,tiny_part]"}
PLAIN = {("coop", "base_to_novel", True), ("vpt_deep", "few_shot", False)}  # one for each tower
COMPARED = ("coop", "base_to_novel", True)

pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument is set")


def cases() -> list[Any]:
    """All methods under all protocols; where images are read as pixels in addition to features: few-shot."""
    every = [
        (method, protocol, bank)
        for protocol in PROTOCOLS
        for method in METHODS
        for bank in ((True, False) if protocol == "few_shot" else (True,))
    ]
    return [
        pytest.param(*case, marks=[] if case in PLAIN else pytest.mark.slow, id="-".join(map(str, case)))
        for case in every
    ]


def overrides(method: str, protocol: str, *, bank: bool) -> list[str]:
    targets = [f"protocol.targets={TARGETS[protocol]}"] if protocol in TARGETS else []
    steps = [] if method in WITHOUT_STEPS else STEPS
    context = FREE if method == "coop" else SHORT.get(method, [])
    if (method, protocol) == ("gda", "base_to_novel"):  # whose classes have few images here
        context = ["method.n_nearest=3"]
    return [*TINY, f"method={method}", f"protocol={protocol}", f"bank.use={bank}", *targets, *steps, *context]


def outcome(asked: list[str], device: str) -> Record | type[UserError]:
    try:
        return run(read_run([*asked, f"device={device}", "precision=fp32"]))
    except UserError as error:
        return type(error)


def refusal(method: str, protocol: str) -> type[UserError]:
    """Of parameters for classes that others are tested on; of a choice on validation images that are trained on."""
    chooses = method in ("linear_probe", "tip_adapter_f") and protocol == "train_val"
    return UserError if chooses else ClassBoundError


@pytest.mark.parametrize(("method", "protocol", "bank"), cases())
def test_a_run_on_a_gpu_has_the_numbers_of_the_cpu(
    results: Path, monkeypatch: pytest.MonkeyPatch, method: str, protocol: str, bank: bool
) -> None:
    """Trained, tested, saved and timed through `run`; a method that a protocol refuses is refused on both."""
    if method == "qlora":
        pytest.importorskip("bitsandbytes")
    asked = overrides(method, protocol, bank=bank)
    monkeypatch.setattr(costs, "TIMES", 1)
    with stand_in.cuda():
        ours = outcome(asked, "cuda:0")
    slowly = (method, protocol, bank) in PLAIN - {COMPARED}
    theirs = ours if slowly else outcome(asked, "cpu")
    if (method, protocol, bank) not in PLAIN and not isinstance(theirs, Record):
        assert ours is theirs is refusal(method, protocol)
        return
    assert isinstance(ours, Record)
    assert isinstance(theirs, Record)
    assert ours.device == "stand-in"
    assert ours.cost["peak_memory_bytes"] == stand_in.PEAK
    assert list(ours.scores) == list(theirs.scores)
    for name, scores in ours.scores.items():
        assert scores["nll"] == pytest.approx(theirs.scores[name]["nll"], rel=1e-3)  # a search amplifies rounding
    losses = [[line["loss"] for line in record.curve] for record in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


MIXED: dict[str, Callable[[Tensor, Tensor], object]] = {
    "a product": lambda here, there: there @ here.T,
    "a sum": lambda here, there: here + there,
    "a sum in place": lambda here, there: there.add_(here),
    "a list": lambda here, there: torch.cat([there, here]),
    "an index into the CPU": lambda here, there: here[there.argmax(0)],
    "rows by index": lambda here, there: there.index_select(0, here.argmax(0)),
    "a loss": lambda here, there: F.cross_entropy(there, torch.zeros(3, dtype=torch.long)),
    "a choice": lambda here, there: torch.where(there > 0, there, here),
    "embedding": lambda here, there: F.embedding(torch.zeros(3, dtype=torch.long), there),
    "a gradient": lambda here, there: torch.autograd.grad((w := there.clone().requires_grad_()).sum(), w, here.sum(0)),
    "an array": lambda here, there: there.numpy(),
}


@pytest.mark.parametrize("what", MIXED)
def test_it_refuses_a_cpu_tensor(what: str) -> None:
    with stand_in.cuda(), pytest.raises((RuntimeError, TypeError), match=r"device|numpy|shape"):
        MIXED[what](torch.ones(3, 3), torch.ones(3, 3, device="cuda:0"))


def test_it_allows_what_a_gpu_does() -> None:
    with stand_in.cuda():
        x = torch.arange(6.0, device="cuda:0").view(2, 3)
        assert (x * torch.tensor(2.0)).sum().item() == 30  # a single number may come from the CPU
        assert x[torch.tensor([1])].tolist() == [[3, 4, 5]]  # so may an index
        assert x.cpu().numpy().tolist() == x.tolist()
        assert (x.device, x.cpu().device) == (torch.device("cuda:0"), torch.device("cpu"))
        there, here = x.clone(), torch.zeros(2, 3)
        here.copy_(there)
        there.zero_()
        assert here.sum() == 15  # they share nothing


def test_a_resnet_has_its_channels_last_on_a_gpu() -> None:
    clip, model = tiny.clip("resnet", torch.float32)
    images = tiny.pixels(model)
    expected, fingerprint = clip.image(Images(images)), clip.image_fingerprint
    with stand_in.cuda():
        moved = clip.to("cuda:0")
        filters = [p for p in moved.weights.root.parameters() if p.dim() == 4 and p.shape[-1] > 1]
        assert filters
        assert all(p.is_contiguous(memory_format=torch.channels_last) for p in filters)
        features = moved.image(Images(images.to("cuda:0")))
        assert replace(moved).image_fingerprint == fingerprint  # of the same numbers
        torch.testing.assert_close(features.cpu(), expected, rtol=1e-4, atol=1e-5)


class Mixing(Learner):
    """It makes a tensor without saying where."""

    def compare(self, features: Tensor, class_features: Tensor | None) -> Tensor:
        assert class_features is not None
        return features @ torch.ones(class_features.shape).T


def test_a_planted_mixture_is_caught() -> None:
    clip, model = tiny.clip("vit", torch.float32)
    images = tiny.pixels(model)
    with stand_in.cuda():
        learner = Mixing(clip.to("cuda:0"), ["zebra", "okapi"])
        with pytest.raises(RuntimeError, match="same device"):
            learner(Images(images.to("cuda:0")), learner.encode_classes())


def test_images_come_from_pinned_memory_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step's pixels and labels are copied while the last one computes; on a CPU there is nothing to copy."""
    split = tiny_world.load("tiny").split("test")
    copies: list[tuple[str, bool]] = []
    to = Tensor.to

    def counted(tensor: Tensor, *args: Any, **more: Any) -> Tensor:
        copies.append((str(tensor.dtype), more.get("non_blocking", False)))
        return to(tensor, *args, **more)

    with stand_in.cuda():
        batches = Batches(Views(split, Preprocess(size=16)), [(None, 0), (None, 1)], batch_size=2, device="cuda:0")
        monkeypatch.setattr(Tensor, "to", counted)
        (pixels, labels), *rest = batches
        monkeypatch.undo()
        assert (pixels.device, labels.device, rest) == (stand_in.DEVICE, stand_in.DEVICE, [])
        assert batches.loader.pin_memory
    assert [copy for copy in copies if copy[1]] == [("torch.uint8", True), ("torch.int64", True)]
    assert not Batches(Views(split, Preprocess(size=16)), [], batch_size=2).loader.pin_memory


def trained_on(device: str, method: str, *more: str) -> Record:
    return run(read_run([*overrides(method, "few_shot", bank=True), f"device={device}", "precision=fp32", *more]))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["coop", "maple", "clip_adapter", "linear_head", "zero_shot"])
def test_a_model_goes_from_one_device_to_the_other(results: Path, method: str) -> None:
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))
    with stand_in.cuda():
        there = trained_on("cuda:0", method)
        expected = vlprompt.load(there, device="cuda:0").probabilities(photo)
        (one,) = vlprompt.load(there, device="cuda:0").predict([photo])
    torch.testing.assert_close(vlprompt.load(there, device="cpu").probabilities(photo), expected, rtol=1e-4, atol=1e-6)
    assert one[0][1] == pytest.approx(float(expected.max()), rel=1e-4)
    here = trained_on("cpu", method, "name=cpu")
    expected = vlprompt.load(here, device="cpu").probabilities(photo)
    with stand_in.cuda():
        model = vlprompt.load(here, device="cuda:0")
        assert model.clip.device == stand_in.DEVICE
        torch.testing.assert_close(model.probabilities(photo), expected, rtol=1e-4, atol=1e-6)
        moved = vlprompt.load(here, device="cpu")
        assert moved.clip.device.type == "cpu"


@pytest.mark.slow
def test_a_run_in_tf32_is_used_on_a_cpu_in_fp32(results: Path) -> None:
    """In the rounding of a GPU there is nothing to test it with elsewhere."""
    rank = ["method.rank=2", "name=two", "precision=tf32"]
    with stand_in.cuda():
        record = trained_on("cuda:0", "dylora", *rank)
        answer = ask(cli.main, ["evaluate", "method.test_rank=1,2", "--device", "cuda:0", "--results", str(results)])
        assert answer.code == 0, answer.err
        assert "tf32" in answer.out
    assert record.precision == "tf32"
    assert vlprompt.load(record, device="cpu").precision == "fp32"
    answer = ask(cli.main, ["evaluate", "method.test_rank=1,2", "--device", "cpu", "--results", str(results)])
    assert answer.code == 0, answer.err
    assert "precision fp32" in answer.out


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_run_in_half_precision_on_a_gpu(results: Path, device: str, precision: str) -> None:
    """Autocast does nothing on the stand-in; the scale of the loss, and what is kept in half precision, do."""
    with stand_in.cuda() if device == "cuda" else stand_in.mps():
        record = trained_on(device, "coop", f"precision={precision}")
    assert record.precision == precision
    exact = trained_on("cpu", "coop", "name=exact")
    assert [line["loss"] for line in record.curve] == pytest.approx([line["loss"] for line in exact.curve], abs=0.05)


@pytest.mark.slow
def test_costs_on_a_gpu_are_a_table(results: Path) -> None:
    """The memory is the GPU's; the operations are those of the CPU."""
    with stand_in.cuda():
        there = trained_on("cuda:0", "vpt_deep")
    here = trained_on("cpu", "vpt_deep", "name=cpu")
    flops = [{name: n for name, n in record.cost.items() if "flops" in name} for record in (there, here)]
    assert flops[0] == flops[1] != {}
    answer = ask(cli.main, ["table", "--costs", "--format", "csv", str(results)])
    assert answer.code == 0, answer.err
    rows = csv.DictReader(answer.out.splitlines())
    assert [float(row["peak_bytes"]) == stand_in.PEAK for row in rows].count(True) == 1


@pytest.mark.slow
def test_settings_are_searched_on_a_gpu(results: Path) -> None:
    pytest.importorskip("optuna", reason="needs the extra tune")
    with stand_in.cuda():
        answer = ask(cli.main, ["tune", "coop", "--trials", "2", *TINY[:-1], *STEPS, *FREE, "device=cuda:0"])
    assert answer.code == 0, answer.err
    assert {record.device for record in find_records([results])} == {"stand-in"}


@pytest.mark.slow
def test_a_run_takes_the_gpu_that_is_free(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "leased", None)
    monkeypatch.setattr(leases, "lock_folder", lambda: tmp_path)
    devices: list[torch.device] = []
    monkeypatch.setattr(vlprompt.run, "make_record", lambda spec, *_: devices.append(spec.device))
    taken = Lock(tmp_path / "card-0.0.lock")
    assert taken.try_acquire()
    with stand_in.cuda(2):
        for more in ([], ["jobs_per_gpu=2"]):
            monkeypatch.setattr(leases, "leased", None)
            run(read_run([*TINY, "method=zero_shot", "protocol=few_shot", "device=auto", *more]))
    assert devices == [torch.device("cuda", 1), torch.device("cuda", 0)]  # then both have one job, and may have two


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["few_shot", "train_val"])
@pytest.mark.parametrize("method", METHODS)
def test_a_run_on_apples_gpu(results: Path, monkeypatch: pytest.MonkeyPatch, method: str, protocol: str) -> None:
    """Which has no float64, and no eigenvalues."""
    monkeypatch.setattr(costs, "TIMES", 1)
    if method == "qlora":
        pytest.importorskip("bitsandbytes")
    asked = overrides(method, protocol, bank=True)
    with stand_in.mps():
        record = outcome(asked, "mps")
    if isinstance(record, Record):
        assert record.device == "mps"
    else:
        assert record is refusal(method, protocol)
