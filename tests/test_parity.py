"""Numbers of the original implementations on a tiny CLIP, reproduced: `pytest -k parity --parity=FOLDER`."""

import json
from pathlib import Path

import numpy as np
import open_clip
import originals
import pytest
import safetensors.torch
import torch

from vlprompt.config.schema import Average, Fit, Schedule
from vlprompt.learners.context import ContextLearner
from vlprompt.towers import Images, Preprocess
from vlprompt.towers.clip import Clip
from vlprompt.towers.loading import clip_of, make_model
from vlprompt.training.averaging import make_keeper
from vlprompt.training.optim import learning_rate, make_optimizer

FIXTURES = Path(__file__).parent / "fixtures" / "parity"


def pytest_generate_tests(metafunc):
    if "case_file" in metafunc.fixturenames:
        folder = metafunc.config.getoption("--parity")
        files = sorted((folder / "cases").glob("*.json"))
        if not files:
            raise pytest.UsageError(f"--parity={folder} holds no cases/*.json")
        metafunc.parametrize("case_file", files, ids=[file.stem for file in files])


def token_table(rule) -> torch.Tensor:
    """The token embeddings, which are computed rather than stored: SplitMix64 of a counter."""
    n = np.uint64(rule["seed"] << 32) + np.arange(rule["rows"] * rule["cols"], dtype=np.uint64)
    with np.errstate(over="ignore"):
        z = n + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    values = ((z >> np.uint64(40)).astype(np.float64) / 2**24 - 0.5).astype(np.float16)
    return torch.from_numpy(values.reshape(rule["rows"], rule["cols"]))


@pytest.fixture(scope="session")
def tiny_clip(parity_folder) -> Clip:
    folder = parity_folder if (parity_folder / "clip_tiny.json").exists() else FIXTURES
    shape = json.loads((folder / "clip_tiny.json").read_text())
    state = safetensors.torch.load_file(folder / "clip_tiny.safetensors")
    ids, rows = state.pop("token_embedding.sample_ids"), state.pop("token_embedding.sample_rows")
    table = token_table(shape["token_table"])
    assert torch.equal(table[ids.long()], rows)
    state["token_embedding.weight"] = table
    model = make_model({
        "embed_dim": shape["embed_dim"],
        "quick_gelu": shape["activation"] == "quick_gelu",
        "vision_cfg": {"image_size": shape["image_size"], "patch_size": shape["patch_size"],
                       "width": shape["vision_width"], "layers": shape["vision_layers"], "head_width": 64},
        "text_cfg": {"context_length": shape["context_length"], "vocab_size": shape["vocab_size"],
                     "width": shape["text_width"], "heads": shape["text_heads"], "layers": shape["text_layers"]},
    })  # fmt: skip
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    preprocess = Preprocess(size=shape["image_size"])
    return clip_of(model, name="tiny", preprocess=preprocess, tokenizer=open_clip.SimpleTokenizer())


def near(ours, theirs, rel):
    assert ours.shape == theirs.shape
    assert torch.linalg.norm(ours.double() - theirs.double()) <= rel * torch.linalg.norm(theirs.double())


def test_parity_of_the_clip_itself(tiny_clip, parity_folder):
    folder = parity_folder if (parity_folder / "clip_reference.json").exists() else FIXTURES
    expected = safetensors.torch.load_file(folder / "clip_reference.safetensors")
    strings = json.loads((folder / "clip_reference.json").read_text())
    assert [tiny_clip.text.count(text) for text in strings["strings"]] == strings["encode_lengths"]
    assert torch.equal(tiny_clip.text.tokenize(strings["strings"]), expected["token_ids"])
    images = tiny_clip.image(Images(expected["images"].float()))
    torch.testing.assert_close(images, expected["image_features"], atol=2e-5, rtol=1e-5)
    features = []
    for text in strings["strings"]:  # one by one: an empty one is among them
        prompts = tiny_clip.text.prompts(["x"], template="{}")
        ids = tiny_clip.text.tokenize([text])
        end = int(ids.argmax()) + 1
        tokens = tiny_clip.text.embed(ids[:, :end])
        whole = type(prompts)(tokens[0, :1], tokens[:, 1:], torch.tensor([end - 2]), (0,), 1)
        features.append(tiny_clip.text(whole))
    torch.testing.assert_close(torch.cat(features), expected["text_features"], atol=2e-5, rtol=1e-5)


def test_parity(tiny_clip, case_file):
    case = json.loads(case_file.read_text())
    method = case["config"].get("method", case_file.stem)
    if case_file.stem in originals.NO_TARGETS:
        pytest.skip("documents a fault of the original, no target")
    if method not in originals.METHODS:
        pytest.skip(f"method {method} is not built yet")
    original = originals.METHODS[method]
    tensors = safetensors.torch.load_file(case_file.with_suffix(".safetensors"))
    if "logits" in tensors:
        check_untrained(tiny_clip, original, case, tensors)
    elif "cache_keys" in tensors:
        check_cache(tiny_clip, original, case, tensors)
    else:
        for run in case["runs"]:
            check_run(tiny_clip, original, case, tensors, run)


def check_untrained(clip, original, case, tensors):
    learner = original.build(clip, case)
    assert not list(learner.parameters())
    images = Images(tensors["inputs.images"].float())
    classes = learner.encode_classes()
    logits = learner.logits(images, classes)
    torch.testing.assert_close(logits, tensors["logits"], atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(torch.nn.functional.normalize(classes, dim=-1), tensors["classifier_normalised"],
                               atol=2e-5, rtol=1e-5)  # fmt: skip
    loss = torch.nn.functional.cross_entropy(logits, tensors["inputs.labels"]).item()
    assert loss == pytest.approx(case["ce_loss"], abs=2e-5, rel=1e-5)
    assert logits.argmax(-1).tolist() == case["top1_pred"]


def check_run(clip, original, case, tensors, run):
    """One training run of a case: every step's loss, gradients and parameters, and the logits around it."""
    told = case["runs"][run]
    learner = original.build(tensors if original.own_backbone else clip, case).train()
    start = {original.ours(k.removeprefix("init.")): v for k, v in tensors.items() if k.startswith("init.")}
    parameters = dict(learner.named_parameters())
    if isinstance(learner, ContextLearner):
        check_words(learner, case, tensors, start["context"])
    with torch.no_grad():
        for name, value in start.items():
            part(parameters, name).copy_(value)
    assert sum(value.numel() for value in start.values()) == sum(p.numel() for p in parameters.values())
    images, labels = Images(tensors["inputs.images"].float()), tensors["inputs.labels"]
    check_start(learner, original, tensors, images)
    fit, per_epoch, total = settings(case, told)
    optimizer = make_optimizer(learner, fit)
    averaged = f"{run}.gauss_weights" in tensors
    if averaged:
        options = case["config"]["trainer_options"]
        fit = fit.model_copy(update={"average": Average(mu=options["GPA_MEAN"], sigma=options["GPA_STD"])})
    keeper = make_keeper(fit, total, lambda: 0)
    if averaged:
        assert per_epoch == 1
        assert keeper.weights == pytest.approx(tensors[f"{run}.gauss_weights"].tolist(), rel=1e-12)
    if original.decay_all:
        for group in optimizer.param_groups:
            group["weight_decay"] = fit.weight_decay
    checked = 0
    for step, expected in enumerate(told["losses"]):
        rate = learning_rate(step, fit, per_epoch=per_epoch, total=total)
        if "lr_used" in told:
            assert rate == pytest.approx(told["lr_used"][step], rel=1e-9)
        for group in optimizer.param_groups:
            group["lr"] = rate
        for name, value in original.parts(learner, images, labels).items():
            assert value.item() == pytest.approx(told["loss_components"][step][name], abs=2e-5, rel=1e-5)
        optimizer.zero_grad()
        loss, _ = learner.backward(images, labels)
        assert loss.item() == pytest.approx(expected, abs=2e-5, rel=1e-5)
        checked += compare(parameters, original, tensors, f"{run}.grad{step + 1}.", 1e-4, lambda p: p.grad)
        optimizer.step()
        keeper.update(learner, step + 1)
        if step + 1 == total:
            keeper.restore(learner)
        checked += compare(
            parameters, original, tensors, f"{run}.param{step + 1}.", original.parameters, lambda p: p.data
        )
    if averaged:
        checked += compare(
            parameters, original, tensors, f"{run}.final_averaged.", original.parameters, lambda p: p.data
        )
    assert checked >= 2 * len(start)
    learner.eval()
    with torch.no_grad():
        for name, key in (("train", "inputs.images"), ("eval", "inputs.eval_images")):
            logits = learner.logits(Images(tensors[key].float()), learner.encode_classes())
            expected = tensors.get(f"{run}.logits_final_{name}_images")
            if expected is None:
                expected = learner.clip.scale * tensors[f"{run}.final_cosine_{name}_images"]
            torch.testing.assert_close(logits, expected, atol=max(1e-4, 10 * original.logits), rtol=0)


class Passes:
    """Features that were read pass by pass: the next one at each iteration."""

    def __init__(self, passes, labels):
        self.passes, self.labels = iter(passes), labels

    def __iter__(self):
        yield Images(features=next(self.passes)), self.labels


def check_cache(clip, original, case, tensors):
    """Tip-Adapter: the cache, its fine-tuning step by step, and the search on validation features."""
    results, told = case["results"], case["config"]
    learner = original.build(clip, case)
    classes = tensors["clip_weights"].T
    if classes.shape[1] == clip.image.embed_dim:
        near(torch.nn.functional.normalize(learner.encode_classes(), dim=-1), classes, 1e-5)
    learner.encode_classes = lambda: classes  # synthetic features have a width of their own
    splits = {
        part: (Images(features=tensors[f"{part}_features"]), tensors[f"{part}_labels"]) for part in ("val", "test")
    }

    def accuracy(part):
        images, labels = splits[part]
        logits = learner.logits(images, classes)
        return logits, 100 * (logits.argmax(-1) == labels).double().mean().item()

    if learner.finetune:
        learner._set_cache(tensors["init.adapter_weight"].clone(), tensors["cache_values"].argmax(-1))
        fit, _, total = settings({"config": {**told, "sched": told["sched"]}}, {"steps": len(results["losses"])})
        fit = fit.model_copy(update={"schedule": fit.schedule.model_copy(update={"floor": 0.0})})
        optimizer = make_optimizer(learner, fit)
        parameters, start, ends = dict(learner.named_parameters()), 0, []
        for step, (size, expected) in enumerate(zip(case["train_step_batch_sizes"], results["losses"], strict=True)):
            rate = learning_rate(step, fit, per_epoch=1, total=total)
            assert rate == pytest.approx(results["lr_used"][step], rel=1e-9)
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            batch = slice(start, start := start + size)
            images = Images(features=tensors["train_step_features_concat"][batch])
            loss, _ = learner.backward(images, tensors["train_step_labels_concat"][batch])
            assert loss.item() == pytest.approx(expected, abs=1e-4, rel=1e-5)
            checked = compare(parameters, original, tensors, f"run.grad{step + 1}.", 1e-4, lambda p: p.grad)
            optimizer.step()
            checked += compare(parameters, original, tensors, f"run.param{step + 1}.", 1e-5, lambda p: p.data)
            assert checked == (2 if step < 3 else step == total - 1)
            if (step + 1) % (total // told["cfg"]["train_epoch"]) == 0:
                with torch.no_grad():
                    ends.append(accuracy("test"))
        for epoch, (logits, _) in enumerate(ends):
            torch.testing.assert_close(logits, tensors[f"test_logits_after_epoch{epoch}"], atol=1e-4, rtol=0)
        assert [right for _, right in ends] == pytest.approx(results["test_acc_per_epoch"])
        if ends[0][1] == ends[1][1]:  # the original takes the first of equally good epochs
            learner._set_cache(tensors["run.param3.adapter_weight"], learner.labels)
    else:
        learner.prepare(Passes(tensors["train_features_raw_per_augment_pass"], tensors["train_labels"]), None)
        near(learner.keys, tensors["cache_keys"].T, 1e-6)
        assert torch.equal(torch.nn.functional.one_hot(learner.labels).float(), tensors["cache_values"])
        logits, right = accuracy("val")
        torch.testing.assert_close(logits, tensors["val_tip_logits_init_hp"], atol=1e-4, rtol=0)
        assert right == pytest.approx(results["val_tip_acc_init_hp"])
    learner.conclude([], [splits["val"]])
    assert [learner.beta.item(), learner.alpha.item()] == pytest.approx(results["best_beta_alpha"])
    logits, right = accuracy("test")
    name, key = ("final", "test_acc_final_best_hp") if learner.finetune else ("tip", "test_tip_acc_best_hp")
    expected = tensors["test_logits_final_best_hp" if name == "final" else "test_tip_logits_best_hp"]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    assert right == pytest.approx(results[key])


def check_words(learner, case, tensors, start):
    """The fixed tokens of the learned text, and a context that starts from words."""
    ids, after = tensors["inputs.token_ids"], learner.text.n_prefix_tokens + learner.n_context
    ours, theirs = learner.prompts.whole(), learner.text.embed(ids)
    for row, end in enumerate(ids.argmax(-1).tolist()):
        assert torch.equal(ours[row, after : end + 1], theirs[row, after : end + 1])
    if learner.ctx_init and "start_of_the_original" not in case:
        assert torch.equal(learner.context, start)


def check_start(learner, original, tensors, images):
    """Logits and features before the first step."""
    classes = learner.encode_classes()
    logits = learner.logits(images, classes)
    torch.testing.assert_close(logits, tensors["init_forward.logits"], atol=original.logits, rtol=1e-5)
    if "init_forward.image_features_raw" in tensors:
        features = learner.clip.image(images) if original.frozen_images else learner.encode_images(images)
        torch.testing.assert_close(features, tensors["init_forward.image_features_raw"], atol=2e-5, rtol=1e-5)
    if "init_forward.class_prompt" in tensors:
        torch.testing.assert_close(learner.class_tokens(), tensors["init_forward.class_prompt"], atol=2e-5, rtol=1e-5)
    if classes is not None and "init_forward.text_features_raw" in tensors:
        torch.testing.assert_close(classes, tensors["init_forward.text_features_raw"], atol=2e-5, rtol=1e-5)


def part(tensors, name):
    """A tensor by name, or a part of it: "tokens[2]", "tokens[1:]"."""
    name, _, index = name.partition("[")
    if not index:
        return tensors[name]
    first, colon, last = index.rstrip("]").partition(":")
    return tensors[name][slice(int(first), int(last) if last else None) if colon else int(first)]


def compare(parameters, original, tensors, prefix, bound, kind):
    expected = {key: value for key, value in tensors.items() if key.startswith(prefix)}
    now = {name: kind(parameter) for name, parameter in parameters.items()}
    for key, value in expected.items():
        near(part(now, original.ours(key.removeprefix(prefix))), value, bound)
    return len(expected)


def settings(case, told):
    """Our settings for a run of a case, its steps in an epoch and in all."""
    optim = {"momentum": 0.0, "betas": (0.9, 0.999), "eps": 1e-8, **(told.get("optim") or case["config"]["optim"])}
    per_epoch, total = told.get("num_batches_per_epoch"), told["steps"]
    if "CosineAnnealing per iteration" in case["config"].get("sched", ""):
        schedule = Schedule(every="step", warmup="none", floor=1e-6)
    elif per_epoch is None:
        schedule = Schedule(shape="constant", warmup="none")
    else:
        total = told["max_epoch"] * per_epoch
        warm = told["warmup_epoch"] > 0
        schedule = Schedule(warmup="constant" if warm else "none", warmup_epochs=max(told["warmup_epoch"], 0),
                            warmup_lr=told["warmup_cons_lr"])  # fmt: skip
    names = ("lr", "momentum", "betas", "eps", "weight_decay")
    fit = Fit(optimizer=optim["name"].lower(), steps=total, schedule=schedule, **{name: optim[name] for name in names})
    return fit, per_epoch or 1, total
