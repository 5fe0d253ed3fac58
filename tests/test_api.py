"""What Python gets: loaded models predict as their runs did, whatever a picture comes as; mistakes are one sentence."""

import importlib
import inspect
import json
import pkgutil
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jaxtyping
import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from running import ROOT, environment_in, set_up
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import vlprompt
from vlprompt import UserError
from vlprompt.config import build
from vlprompt.config.compose import read_run
from vlprompt.config.spec import RunSpec
from vlprompt.data.dataset import Split
from vlprompt.learners.base import Learner
from vlprompt.results import metrics
from vlprompt.results.predictions import Predictions, load_predictions
from vlprompt.run import run
from vlprompt.training.device import default_workers

METHODS = sorted(path.stem for path in (ROOT / "conf" / "method").glob("*.yaml"))
SHORT = ["dataset=digits", "backbone=shapes_vit", "debug=fast", "workers=0", "cache=false", "bank.gb=0"]
CLASSES = ["zero", "one", "two"]


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = tmp_path_factory.mktemp("api")
    with pytest.MonkeyPatch.context() as patch:
        set_up(patch, made)
        yield made


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Types are not checked, as for users: the package's own checks answer."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def made(*settings: str) -> RunSpec:
    """A finished run."""
    spec = read_run([*SHORT, *settings])
    run(spec)
    return spec


@pytest.fixture(scope="module")
def base_to_novel(folder: Path) -> RunSpec:
    return made("method=coop", "protocol=base_to_novel")


@pytest.fixture(scope="module")
def class_bound(folder: Path) -> RunSpec:
    return made("method=linear_probe", "protocol=few_shot", "bank.use=false")


@pytest.fixture(scope="module")
def model(base_to_novel: RunSpec) -> vlprompt.Model:
    return vlprompt.load(base_to_novel.folder)


def splits_of(spec: RunSpec) -> dict[str, tuple[Split, Predictions, list[Image.Image]]]:
    """A run's test splits, its predictions of them, and their pictures."""
    predictions = load_predictions(spec.folder / "predictions.npz")
    splits = build.make_episode(spec).tests
    return {
        name: (split, predictions[name], [split.open_image(item.image) for item in split.items])
        for name, split in splits.items()
    }


def check_equals_its_run(spec: RunSpec) -> None:
    """All tests that the loaded model can be bound to: the run's own predictions."""
    model = vlprompt.load(spec.folder)
    for split, predictions, pictures in splits_of(spec).values():
        rows = model.with_classes(split.classes, transfer=split.transfer).probabilities(pictures).numpy()
        assert (rows.argmax(1) == predictions.predicted).all()
        assert np.abs(rows.max(1) - predictions.confidence).max() < 1e-4
        assert np.ptp(rows, axis=0).max() > 1e-3 or len(split.classes) == 1, "equal whatever the picture"


def test_a_class_bound_learner_equals_its_run(class_bound: RunSpec) -> None:
    check_equals_its_run(class_bound)


def test_open_vocabulary_equals_its_run_on_novel_classes(base_to_novel: RunSpec) -> None:
    assert set(splits_of(base_to_novel)) == {"base", "novel", "all"}
    check_equals_its_run(base_to_novel)


@pytest.mark.slow
@pytest.mark.parametrize("use", ["true", "false"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_equals_its_run(method: str, use: str) -> None:
    if method == "qlora":
        pytest.importorskip("bitsandbytes")
    spec = made(f"method={method}", "protocol=few_shot", f"bank.use={use}")
    check_equals_its_run(spec)
    model = vlprompt.load(spec.folder)
    (split, _, pictures), *_ = splits_of(spec).values()
    few = model.with_classes(split.classes[2:0:-1]).logits(pictures[:4])
    if model.learner.class_bound:
        assert torch.allclose(few, model.logits(pictures[:4])[:, [2, 1]], atol=1e-4)
        with pytest.raises(vlprompt.ClassBoundError, match="cannot classify"):
            model.with_classes(["circle", "square"])
    else:
        assert few.shape == model.with_classes(["circle", "square"]).logits(pictures[:4]).shape == (4, 2)
    assert model.features(pictures[:2]).shape[0] == 2


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_open_method_equals_its_run_on_novel_classes(method: str) -> None:
    if method == "qlora":
        pytest.importorskip("bitsandbytes")
    try:
        spec = made(f"method={method}", "protocol=base_to_novel")
    except vlprompt.ClassBoundError:
        pytest.skip("it is bound to its classes")
    check_equals_its_run(spec)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", ["linear_head", "linear_probe", "lora", "vpt_deep method.depth=6", "adapter", "bitfit", "tip_adapter"]
)
def test_heads_over_a_vision_transformer_equal_their_runs(method: str) -> None:
    backbone = ["backbone=timm_vit", "backbone.model=test_vit", "backbone.weights=random"]
    spec = read_run([*SHORT, *backbone, *f"method={method}".split(), "protocol=few_shot"])
    run(spec)
    check_equals_its_run(spec)


def test_other_classes_leave_the_model_as_it_is(model: vlprompt.Model) -> None:
    picture, before = drawn(1), model.classes
    logits = model.logits(picture)
    other = model.with_classes(["three", "two"])
    assert other.classes == ("three", "two")
    assert model.classes == before
    assert torch.equal(model.logits(picture), logits)
    few = model.with_classes([before[2], before[0]]).logits(picture)
    assert torch.allclose(few, logits[:, [2, 0]], atol=1e-4)
    assert not torch.allclose(other.logits(picture), few, atol=1e-2)


def test_a_class_bound_learner_says_so_and_keeps_the_rows_of_a_subset(class_bound: RunSpec) -> None:
    model = vlprompt.load(class_bound.folder)
    logits, names = model.logits(drawn(1)), model.classes
    assert torch.equal(model.with_classes(names[4:1:-1]).logits(drawn(1)), logits[:, [4, 3, 2]])
    with pytest.raises(vlprompt.ClassBoundError, match=r"cannot classify others \(circle\)"):
        model.with_classes([names[0], "circle"])


def drawn(seed: int, *, height: int = 30, width: int = 24) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 6, width // 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)


def test_a_picture_may_come_as_anything(model: vlprompt.Model, tmp_path: Path) -> None:
    image = drawn(2)
    image.save(path := tmp_path / "one.png")
    array = np.asarray(image)
    tensor = torch.tensor(array).permute(2, 0, 1)
    ready = model.preprocess(image)
    expected = model.logits(image)
    assert expected.shape == (1, len(model.classes))
    assert expected.dtype == torch.float32
    forms: list[Any] = [path, str(path), array, tensor, ready, ready.numpy(), ready[None], array[None], tensor[None]]
    for form in forms:
        assert torch.allclose(model.logits(form), expected, atol=1e-4), type(form)
    several: list[Any] = [forms[:4], tuple(forms[:4]), np.stack([array] * 4), torch.stack([tensor] * 4), [ready] * 4,
                          torch.stack([ready] * 4), np.array([str(path)] * 4), iter(forms[:4])]  # fmt: skip
    for pictures in several:
        assert torch.allclose(model.logits(pictures), expected.expand(4, -1), atol=1e-4), type(pictures)
    assert not torch.allclose(model.logits(drawn(3)), expected, atol=1e-2)


def test_grey_and_transparent_and_turned_pictures(model: vlprompt.Model, tmp_path: Path) -> None:
    image = drawn(4)
    grey = image.convert("L")
    expected = model.logits(grey.convert("RGB"))
    for form in (grey, np.asarray(grey), np.asarray(grey)[:, :, None], torch.tensor(np.asarray(grey))[None]):
        assert torch.allclose(model.logits(form), expected, atol=1e-4)
    clear = image.convert("RGBA")
    clear.putalpha(0)
    white = model.logits(Image.new("RGB", image.size, "white"))
    clear.save(tmp_path / "clear.png")
    for transparent in (clear, np.asarray(clear), tmp_path / "clear.png"):
        assert torch.allclose(model.logits(transparent), white, atol=1e-4)
    exif = Image.Exif()
    exif[274] = 6  # to be turned
    image.save(turned := tmp_path / "turned.png", exif=exif)
    expected = model.logits(image.transpose(Image.Transpose.ROTATE_270))
    with Image.open(turned) as opened:
        for one in (turned, opened):
            assert torch.allclose(model.logits(one), expected, atol=1e-4)
            assert torch.allclose(model.logits(model.preprocess(one)), expected, atol=1e-4)


def test_as_stored_a_picture_is_not_turned(model: vlprompt.Model, tmp_path: Path) -> None:
    stored = vlprompt.Model(model.learner, as_shown=False)
    image, exif = drawn(4), Image.Exif()
    exif[274] = 6
    image.save(turned := tmp_path / "turned.png", exif=exif)
    assert torch.allclose(stored.logits(turned), stored.logits(image), atol=1e-4)
    assert torch.allclose(stored.logits(stored.preprocess(turned)), stored.logits(image), atol=1e-4)


def test_a_learner_that_is_in_training_predicts_without_dropout(model: vlprompt.Model) -> None:
    learner = vlprompt.learners.LoRA(model.clip, CLASSES, dropout=0.9)
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(0.05)
    expected = vlprompt.Model(learner.eval()).logits(drawn(1))
    assert torch.equal(vlprompt.Model(learner.train()).logits(drawn(1)), expected)


def test_predict_gives_classes_and_probabilities(model: vlprompt.Model) -> None:
    one, likely = model.predict(drawn(1)), model.predict(drawn(1), top=99)
    assert [len(one), len(likely)] == [1, len(model.classes)]
    assert likely[0] == one[0]
    names, values = zip(*likely, strict=True)
    assert sorted(names) == sorted(model.classes)
    assert list(values) == sorted(values, reverse=True)
    assert sum(values) == pytest.approx(1, abs=1e-5)
    assert [len(rows) for rows in model.predict([drawn(1), drawn(2)], top=2)] == [2, 2]
    assert model.predict([drawn(1)]) == [one]
    expected = dict(zip(model.classes, model.logits(drawn(1)).softmax(-1)[0].tolist(), strict=True))
    assert dict(likely) == pytest.approx(expected, abs=1e-5)
    assert model.features(drawn(1)).shape == (1, model.clip.image.embed_dim)


@pytest.mark.parametrize("n", [4, pytest.param(130, marks=pytest.mark.slow)])  # more than a batch
def test_damaged_pictures_are_told_and_left_out(
    model: vlprompt.Model, tmp_path: Path, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bad := tmp_path / "bad.jpg").write_bytes(b"no picture")
    pictures: list[Any] = [drawn(i) for i in range(n)]
    expected = model.logits(pictures)
    pictures[1], pictures[n - 1] = bad, tmp_path / "gone.png"
    monkeypatch.setattr("vlprompt.api.default_workers", lambda: max(default_workers(), 1))
    told: dict[int, str] = {}
    rows = list(model.iterate(pictures, damaged=lambda i, error: told.update({i: str(error)})))
    assert list(told) == [1, n - 1]
    assert "bad.jpg" in told[1]
    indices = [i for numbers, _ in rows for i in numbers]
    assert indices == [i for i in range(n) if i not in told]
    assert torch.allclose(torch.cat([logits for _, logits in rows]), expected[indices], atol=1e-4)
    with pytest.raises(UserError, match=r"bad\.jpg"):
        model.predict(pictures)


def given(*, n: int = 6, classes: int = 3, size: int = 48) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, size, size, generator=generator), torch.arange(n) % classes


def fresh(model: vlprompt.Model) -> Learner:
    torch.manual_seed(3)
    learner: Learner = vlprompt.learners.CoOp(model.clip, CLASSES, n_context=2)
    return learner


Mistake = Callable[[vlprompt.Model, Path], object]
LOADING: dict[str, tuple[Mistake, str]] = {
    "no folder": (lambda m, run: vlprompt.load(run / "nothing"), "there is no folder"),
    "no run": (lambda m, run: vlprompt.load(run.parent), "no run and no learner"),
    "a file": (lambda m, run: vlprompt.load(run / "result.json"), "result.json"),
    "no tensors": (lambda m, run: vlprompt.load(cut(run, "learner.safetensors")), "holds no learner.safetensors"),
    "no configuration": (lambda m, run: vlprompt.load(cut(run, "learner_config.json")), "holds no learner_config"),
    "damaged": (lambda m, run: vlprompt.load(cut(run, "learner.safetensors", b"no tensors")), "is damaged"),
    "damaged, without record": (
        lambda m, run: vlprompt.load(cut(cut(run, "result.json"), "learner.safetensors", b"no tensors")),
        "is damaged",
    ),
    "damaged record": (lambda m, run: vlprompt.load(cut(run, "result.json", b"{")), "is damaged"),
    "another backbone": (lambda m, run: vlprompt.load(wider(run)), "does not fit CoOp over shapes_vit"),
    "nothing": (lambda m, run: vlprompt.load(None), "None is no trained model"),  # type: ignore[arg-type]
    "an empty text": (lambda m, run: vlprompt.load(""), "'' is no trained model"),
    "device": (lambda m, run: vlprompt.load(run, device="gpu"), "allowed are auto, cpu, cuda"),
    "device number": (lambda m, run: vlprompt.load(run, device="cuda:x"), "allowed are auto, cpu, cuda"),
    "precision": (lambda m, run: vlprompt.load(run, precision="fp12"), "known are auto, bf16, fp16"),
    "unknown model": (lambda m, run: vlprompt.load_clip("ViT-B-17"), "unknown model"),
    "unknown weights": (lambda m, run: vlprompt.load_clip("vit_b16", "nobody"), "known are dfn2b, metaclip"),
}
PICTURES: dict[str, tuple[Mistake, str]] = {
    "empty": (lambda m, run: m.predict([]), "at least one"),
    "empty batch": (lambda m, run: m.predict(torch.zeros(0, 3, 48, 48)), "at least one"),
    "missing": (lambda m, run: m.predict("nothing.jpg"), "nothing.jpg"),
    "folder": (lambda m, run: m.predict(run), "is a folder"),
    "corrupt": (lambda m, run: m.predict(run / "result.json"), "cannot be read"),
    "none": (lambda m, run: m.predict([None]), "NoneType is no picture"),  # type: ignore[list-item]
    "dictionary": (lambda m, run: m.predict({"a": 1}), "dict is no picture"),  # type: ignore[arg-type]
    "other type": (lambda m, run: m.predict(np.zeros((9, 9, 3), int)), "int64 [9, 9, 3] is no picture"),
    "channels first": (lambda m, run: m.predict(np.zeros((3, 9, 9), np.uint8)), "uint8 [3, 9, 9] is no picture"),
    "no pixels": (lambda m, run: m.predict(np.zeros((0, 9, 3), np.uint8)), "is no picture"),
    "floats": (lambda m, run: m.predict(torch.zeros(3, 9, 9)), "allowed is [3, 48, 48]"),
    "mixed floats": (lambda m, run: m.predict([drawn(1), torch.zeros(3, 48, 48)]), "all of a list, or none"),
    "nan": (lambda m, run: m.predict(torch.full((3, 48, 48), torch.nan)), "NaN"),
    "top": (lambda m, run: m.predict(drawn(1), top=0), "top is 0"),
    "top as a text": (lambda m, run: m.predict(drawn(1), top="5"), "top is '5'"),  # type: ignore[arg-type]
    "no classes": (lambda m, run: m.with_classes([]), "the classes are []"),
    "one text": (lambda m, run: m.with_classes("zebra"), "the classes are 'zebra'"),
    "numbers": (lambda m, run: m.with_classes([1, 2]), "the classes are [1, 2]"),  # type: ignore[list-item]
    "a set": (lambda m, run: m.with_classes({"one"}), "allowed is a list"),  # type: ignore[arg-type]
    "an empty name": (lambda m, run: m.with_classes(["one", " "]), "allowed is a list"),
    "unknown words": (lambda m, run: m.with_classes(["quark"]), "quark"),
    "no model": (lambda m, run: vlprompt.learners.CoOp("vit_b16", CLASSES), "'vit_b16' is no frozen model"),
    "a learner's": (lambda m, run: vlprompt.learners.CoOp(m.clip, "zebra"), "the classes are 'zebra'"),
}
X, Y = given()


def fitted(m: vlprompt.Model, batches: object = ((X, Y),), **settings: object) -> object:
    arguments: dict[str, Any] = {"epochs": 2, "lr": 0.1, "progress": False, **settings}
    return vlprompt.fit(fresh(m), batches, **arguments)  # type: ignore[arg-type]


FITTING: dict[str, tuple[Mistake, str]] = {
    "no length": (lambda m, run: fitted(m, epochs=None), "either epochs or steps"),
    "two lengths": (lambda m, run: fitted(m, steps=2), "either epochs or steps"),
    "no rate": (lambda m, run: fitted(m, lr=None), "fit.lr"),
    "rate": (lambda m, run: fitted(m, lr=-1.0), "fit.lr is -1"),
    "warm-up": (lambda m, run: fitted(m, epochs=1), "lr=0.1 has no effect"),
    "unknown": (lambda m, run: fitted(m, momentun=0.9), "momentun"),
    "batch size": (lambda m, run: fitted(m, batch_size=4), "those of the batches"),
    "precision": (lambda m, run: fitted(m, precision="half"), "unknown precision"),
    "no validation": (lambda m, run: fitted(m, keep="best"), "needs validation images"),
    "no batches": (lambda m, run: fitted(m, []), "there are no batches"),
    "once": (lambda m, run: fitted(m, iter([(X, Y)])), "cannot be read several times"),
    "no labels": (lambda m, run: fitted(m, [X]), "allowed is (images, labels)"),
    "arrays": (lambda m, run: fitted(m, [(X.numpy(), Y.numpy())]), "of type tuple of ndarray, ndarray"),
    "a data set": (lambda m, run: fitted(m, TensorDataset(X, Y)), "which holds no batches: give a DataLoader"),
    "bytes": (lambda m, run: fitted(m, [(X.byte(), Y)]), "uint8 [6, 3, 48, 48]"),
    "size": (lambda m, run: fitted(m, [(X[..., :20], Y)]), "[B, 3, 48, 48]"),
    "few labels": (lambda m, run: fitted(m, [(X, Y[:2])]), "labels are int64 [2]"),
    "labels as texts": (lambda m, run: fitted(m, [(X, ["one"] * 6)]), "allowed are integers"),
    "label": (lambda m, run: fitted(m, [(X, Y - 1)]), "a label is -1, allowed are 0 to 2"),
    "nan": (lambda m, run: fitted(m, [(X * torch.nan, Y)]), "not finite"),
    "a class": (lambda m, run: vlprompt.fit(vlprompt.learners.CoOp, [(X, Y)], epochs=2), "is no learner"),
    "a model": (lambda m, run: vlprompt.fit(m, [(X, Y)], epochs=2, lr=1.0), "is no learner"),  # type: ignore[arg-type]
    "nothing to train": (
        lambda m, run: vlprompt.fit(vlprompt.learners.ZeroShot(m.clip, CLASSES), [(X, Y)], epochs=2, lr=1.0),
        "nothing to train",
    ),
    "nothing to score": (lambda m, run: vlprompt.score(m, []), "there are no batches"),
    "score of a name": (lambda m, run: vlprompt.score("coop", [(X, Y)]), "is no learner"),  # type: ignore[arg-type]
    "unknown method": (lambda m, run: vlprompt.benchmark("method=coup"), "unknown method 'coup'"),
    "one text for all": (lambda m, run: vlprompt.benchmark("method=coop dataset=digits"), "NAME=VALUE"),
    "a sweep": (lambda m, run: vlprompt.benchmark("seed=1,2"), "several values"),
    "a list": (lambda m, run: vlprompt.benchmark(["method=coop"]), "give texts"),  # type: ignore[arg-type]
    "no results": (lambda m, run: vlprompt.read_results(run / "nothing"), "there is no folder"),
    "metric": (lambda m, run: vlprompt.read_results(run, metric="speed"), "unknown metric"),
}


def cut(run: Path, name: str, content: bytes | None = None) -> Path:
    """A run without a file, or with another one."""
    (run / name).unlink() if content is None else (run / name).write_bytes(content)
    return run


def wider(run: Path) -> Path:
    """A learner's folder with the tensors of a wider backbone."""
    cut(run, "result.json")
    tensors = safetensors.torch.load_file(run / "learner.safetensors")
    safetensors.torch.save_file(
        {name: torch.cat([t, t], -1) for name, t in tensors.items()}, run / "learner.safetensors"
    )
    return run


@pytest.mark.parametrize(("mistake", "said"), [*LOADING.values()], ids=[*LOADING])
def test_mistakes_in_loading(
    mistake: Mistake, said: str, model: vlprompt.Model, base_to_novel: RunSpec, tmp_path: Path, unchecked: None
) -> None:
    shutil.copytree(base_to_novel.folder, run := tmp_path / "seed1")
    check_mistake(lambda: mistake(model, run), said)


@pytest.mark.parametrize(("mistake", "said"), [*(PICTURES | FITTING).values()], ids=[*(PICTURES | FITTING)])
def test_mistakes(mistake: Mistake, said: str, model: vlprompt.Model, base_to_novel: RunSpec, unchecked: None) -> None:
    check_mistake(lambda: mistake(model, base_to_novel.folder), said)


def check_mistake(mistake: Callable[[], object], said: str) -> None:
    with pytest.raises(UserError) as caught:
        mistake()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_random_numbers_stay(model: vlprompt.Model, base_to_novel: RunSpec) -> None:
    learner = fresh(model)
    pictures = [drawn(i) for i in range(4)]
    before, numpys = torch.get_rng_state(), np.random.get_state()[1].copy()
    vlprompt.load(base_to_novel.folder).predict(pictures)
    vlprompt.load_clip("shapes_vit")
    shuffled = DataLoader(TensorDataset(X, Y), 3, shuffle=True)
    vlprompt.fit(learner, shuffled, epochs=2, lr=0.1, progress=False)
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(numpys, np.random.get_state()[1])


@pytest.mark.slow
def test_random_numbers_stay_where_a_run_is_configured(base_to_novel: RunSpec) -> None:
    pictures = [drawn(i) for i in range(4)]
    before, numpys = torch.get_rng_state(), np.random.get_state()[1].copy()
    vlprompt.benchmark(*SHORT, "protocol=base_to_novel", "method=coop", "force=true")
    estimator = vlprompt.PromptClassifier(backbone="shapes_vit", steps=2, epochs=None, lr=0.1)
    estimator.fit(pictures, ["one", "two"] * 2).predict(pictures)
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(numpys, np.random.get_state()[1])


class Epochs:
    """Batches that are others in each epoch."""

    def __init__(self, batches: list[tuple[Tensor, Tensor]], per_epoch: int) -> None:
        self.batches, self.per_epoch, self.epoch = batches, per_epoch, 0

    def __len__(self) -> int:
        return self.per_epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        first = self.epoch * self.per_epoch
        self.epoch += 1
        return iter(self.batches[first : first + self.per_epoch])


def test_fit_gives_the_tensors_of_a_run_on_equal_batches() -> None:
    spec = made("method=coop", "protocol=few_shot", "bank.use=false", "fit.epochs=2", "shots=2", "fit.batch_size=8")
    episode = build.make_episode(spec)
    learner = build.make_learner(spec, build.make_clip(spec), episode)
    loader, wanted = build.make_loader(spec, learner), spec.settings.fit
    assert wanted is not None
    per_epoch = loader.n_batches(episode.train, 8, drop_last=wanted.drop_last)
    total = 2 * per_epoch
    batches = [
        (images.pixels, labels)
        for images, labels in loader.shuffled(episode.train, batch_size=8, per_epoch=per_epoch, total=total)
        if images.pixels is not None
    ]
    assert len(batches) == total > 2
    settings = wanted.model_dump(exclude={"batch_size", "drop_last", "steps"}, exclude_none=True)
    start = {name: tensor.clone() for name, tensor in learner.state_dict().items()}
    curve = vlprompt.fit(learner, Epochs(batches, per_epoch), seed=spec.settings.seed, progress=False, **settings)
    trained = vlprompt.load(spec.folder).learner.state_dict()
    for name, tensor in learner.state_dict().items():
        assert torch.equal(tensor, trained[name])
        assert not torch.equal(tensor, start[name])
    record = json.loads((spec.folder / "result.json").read_text())
    assert [vars(line) for line in curve] == record["curve"]


def test_score_is_that_of_the_record_and_of_metrics(class_bound: RunSpec) -> None:
    model = vlprompt.load(class_bound.folder)
    ((split, _, pictures),) = splits_of(class_bound).values()
    labels = torch.tensor([item.label for item in split.items])
    data = TensorDataset(torch.stack([model.preprocess(picture) for picture in pictures]), labels)
    scored = vlprompt.score(model, DataLoader(data, batch_size=7))
    assert vlprompt.score(model.learner, DataLoader(data, batch_size=7)) == scored
    predictions = Predictions.from_logits([""] * len(labels), labels, model.logits(pictures))
    assert vars(scored) == pytest.approx(metrics.score(predictions), abs=1e-6)
    record = json.loads((class_bound.folder / "result.json").read_text())
    assert vars(scored) == pytest.approx(record["scores"]["test"], abs=1e-6)


def test_results_are_a_tidy_frame(base_to_novel: RunSpec, class_bound: RunSpec, folder: Path) -> None:
    frame = vlprompt.read_results()
    coop = frame[(frame["method"] == "coop") & (frame["folder"] == str(base_to_novel.folder))]
    record = json.loads((base_to_novel.folder / "result.json").read_text())
    values = dict(zip(coop["split"], coop["value"], strict=True))
    for name, scores in record["scores"].items():
        assert values[name] == pytest.approx(100 * scores["accuracy"])
    assert "linear_probe" in {*vlprompt.read_results(folder / "results", metric="nll")["method"]}


def test_no_public_name_is_a_module() -> None:
    names = set(vlprompt.__all__) - {"learners"}
    assert not [name for name in names if isinstance(getattr(vlprompt, name), ModuleType)]
    assert not [name for name in names if importlib.util.find_spec(f"vlprompt.{name}")]
    assert vlprompt.learners.CoOp is importlib.import_module("vlprompt.learners.coop").CoOp
    with pytest.raises(AttributeError, match="nothing"):
        _ = vlprompt.nothing


@pytest.mark.slow
def test_each_public_name_works_twice_after_all_imports(model: vlprompt.Model, base_to_novel: RunSpec) -> None:
    for info in pkgutil.walk_packages(vlprompt.__path__, "vlprompt."):
        try:
            importlib.import_module(info.name)
        except ImportError as error:
            if str(error.name).startswith("vlprompt"):
                raise  # else an extra that is not installed
    batches, pictures = [given()], [drawn(1), drawn(2)]
    uses: dict[str, Callable[[], object]] = {
        "Model": lambda: vlprompt.Model(model.learner).predict(drawn(1)),
        "PromptClassifier": lambda: vlprompt.PromptClassifier("zero_shot", "shapes_vit").fit(pictures, ["one", "two"]),
        "benchmark": lambda: vlprompt.benchmark(*SHORT, "protocol=base_to_novel"),
        "fit": lambda: vlprompt.fit(fresh(model), batches, epochs=2, lr=0.1, progress=False),
        "load": lambda: vlprompt.load(base_to_novel.folder),
        "load_clip": lambda: vlprompt.load_clip("shapes_vit"),
        "read_results": lambda: vlprompt.read_results(),
        "score": lambda: vlprompt.score(fresh(model), batches),
        "Score": lambda: vlprompt.Score(0.5, 1, 2, 1.0, 0.5, 0.5, 0.1, 0.7),
    }
    kinds = {"ClassBoundError", "UserError", "Record"}
    assert set(uses) == set(vlprompt.__all__) - kinds - {"learners"}
    for use in [*uses.values()] * 2:
        use()


def test_public_names_say_what_they_take_and_raise() -> None:
    for name in vlprompt.__all__:
        public = getattr(vlprompt, name)
        assert inspect.getdoc(public), name
        if inspect.isfunction(public):
            assert "Raises:" in (inspect.getdoc(public) or ""), name
    for kind, names in ((vlprompt.Model, ("predict", "probabilities", "logits", "features", "with_classes", "iterate")),
                        (vlprompt.PromptClassifier, ("fit", "predict", "predict_proba"))):  # fmt: skip
        for name in names:
            assert "Raises:" in (inspect.getdoc(getattr(kind, name)) or ""), name
    assert set(vlprompt.__all__) <= set(dir(vlprompt))
    everything: dict[str, object] = {}
    exec("from vlprompt import *", everything)
    assert set(vlprompt.__all__) <= set(everything)


def test_the_import_is_quick_and_brings_nothing_heavy(folder: Path) -> None:
    code = (
        "import sys, time; start = time.process_time(); import vlprompt; spent = time.process_time() - start; "
        "print(spent, *sorted({'torch', 'pandas', 'numpy', 'hydra', 'sklearn'} & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment_in(folder))
    spent, *heavy = answer.stdout.split()
    assert float(spent) < 0.2
    assert not heavy
    assert (Path(vlprompt.__file__).parent / "py.typed").exists()


TYPED = """
import vlprompt
model = vlprompt.load("run")
reveal_type(model.with_classes(["zebra"]))
reveal_type(model.logits("a.jpg"))
reveal_type(vlprompt.benchmark("seed=1").scores)
reveal_type(vlprompt.PromptClassifier().fit(["a.jpg"], ["a"]))
model.predict(5)
vlprompt.load()
"""


@pytest.mark.slow
def test_a_type_checker_sees_the_types(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "user.py").write_text(TYPED)
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), str(tmp_path / "user.py")]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    said = answer.stdout
    for kind in ("vlprompt.api.Model", "torch._tensor.Tensor", "dict[str", "vlprompt.estimator.PromptClassifier"):
        assert f'Revealed type is "{kind}' in said.replace("builtins.", ""), said
    assert "user.py:8: error: Argument 1 to" in said
    assert "user.py:9: error: Missing positional argument" in said
