"""Runs on a stand-in for a GPU, which refuses CPU tensors where it needs its own; its numbers are those of the CPU."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import stand_in
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor

from vlprompt.config.compose import read_run
from vlprompt.errors import UserError
from vlprompt.learners.base import Learner
from vlprompt.results import costs
from vlprompt.results.record import Record
from vlprompt.run import run
from vlprompt.towers import Images

ROOT = Path(__file__).resolve().parents[1]
CONF = Path(__file__).parent / "fixtures" / "conf"
TINY = [
    *(f"hydra.searchpath=[file://{CONF}]", "dataset=tiny", "backbone.weights=random", "shots=2"),
    *("bank.views=1", "workers=0", "force=true"),
]
STEPS = ["++fit.steps=2", "++fit.epochs=null"]
FREE = ["method.ctx_init=''", "method.n_context=4"]
METHODS = sorted(path.stem for path in (ROOT / "conf" / "method").glob("*.yaml"))
WITHOUT_STEPS = ("zero_shot", "hard_prompts", "linear_probe", "lp_plus_plus", "tip_adapter", "cross_modal")
SHORT = {"cross_modal": ["method.iterations=20", "method.batch_sizes=[2,4]"]}
PROTOCOLS = ("few_shot", "base_to_novel", "cross_dataset", "domain_generalization", "train_val")
TARGETS = {"cross_dataset": "[tiny_other]", "domain_generalization": "[tiny_sketch,tiny_part]"}
PLAIN = {("coop", "base_to_novel", True), ("vpt_deep", "few_shot", False), ("clip_adapter", "few_shot", True)}
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
    return [*TINY, f"method={method}", f"protocol={protocol}", f"bank.use={bank}", *targets, *steps, *context]


def on_cpu(asked: list[str]) -> Record | type[UserError]:
    try:
        return run(read_run([*asked, "device=cpu", "precision=fp32"]))
    except UserError as error:
        return type(error)


def on_device(asked: list[str], precision: str = "fp32") -> Record | type[UserError]:
    with stand_in.cuda():
        try:
            return run(read_run([*asked, "device=cuda:0", f"precision={precision}"]))
        except UserError as error:
            return type(error)


@pytest.mark.parametrize(("method", "protocol", "bank"), cases())
def test_a_run_on_a_gpu_has_the_numbers_of_the_cpu(
    results: Path, monkeypatch: pytest.MonkeyPatch, method: str, protocol: str, bank: bool
) -> None:
    """Trained, tested, saved and timed through `run`; a method that a protocol refuses is refused on both."""
    if method == "qlora":
        pytest.importorskip("bitsandbytes")
    asked = overrides(method, protocol, bank=bank)
    monkeypatch.setattr(costs, "TIMES", 1)
    ours = on_device(asked)
    theirs = ours if (method, protocol, bank) in PLAIN - {COMPARED} else on_cpu(asked)  # the others are compared slowly
    if (method, protocol, bank) not in PLAIN and not isinstance(theirs, Record):
        assert ours is theirs
        return
    assert isinstance(ours, Record)
    assert isinstance(theirs, Record)
    assert ours.device == "stand-in"
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


def test_a_planted_mixture_is_caught(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a method makes a tensor without saying where."""
    monkeypatch.setattr(Learner, "compare", lambda self, features, classes: features @ torch.ones(classes.shape).T)
    with stand_in.cuda(), pytest.raises(RuntimeError, match="same device"):
        run(read_run([*TINY, "method=zero_shot", "protocol=few_shot", "device=cuda:0"]))
