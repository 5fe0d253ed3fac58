"""Numbers of the original implementations on a tiny CLIP, reproduced: `pytest -k parity --parity=FOLDER`."""

import json
import re
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import open_clip
import originals
import parity_banked
import parity_prolip
import parity_stages
import pytest
import safetensors.torch
import torch

from vlprompt.config.schema import Average, Fit, Schedule
from vlprompt.towers import Images, Preprocess
from vlprompt.towers.clip import Clip
from vlprompt.towers.loading import clip_of, make_model
from vlprompt.training.averaging import make_keeper
from vlprompt.training.optim import make_optimizer, set_learning_rate

FIXTURES = Path(__file__).parent / "fixtures" / "parity"
SLOW = {"coop_m16", "coop_front_m4", "coop_ctxinit", "coop_middle_m4", "coop_csc_m4", "cocoop_m4", "kgcoop_random",
        "maple_n5_d2_random", "maple_n2_d1", "ivlp_asym", "lora_text_qv", "lora_vision_qkvo_r4",
        "prolip_search_pets_s2"}  # fmt: skip
"""Of this repository's cases: those whose method and way others have, too."""


def pytest_generate_tests(metafunc):
    if "case_file" in metafunc.fixturenames:
        folder = metafunc.config.getoption("--parity")
        files = sorted((folder / "cases").glob("*.json"))
        if not files:
            raise pytest.UsageError(f"--parity={folder} holds no cases/*.json")
        cases = [
            pytest.param(f, id=f.stem, marks=[pytest.mark.slow] * (folder == FIXTURES and f.stem in SLOW))
            for f in files
        ]
        metafunc.parametrize("case_file", cases)


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
    return load_tiny(parity_folder if (parity_folder / "clip_tiny.json").exists() else FIXTURES)


@cache
def load_tiny(folder: Path, layers: int | None = None) -> Clip:
    """The CLIP of a folder with cases; with `layers`, cut to the first blocks of both towers."""
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
                       "width": shape["vision_width"], "layers": layers or shape["vision_layers"], "head_width": 64},
        "text_cfg": {"context_length": shape["context_length"], "vocab_size": shape["vocab_size"],
                     "width": shape["text_width"], "heads": shape["text_heads"],
                     "layers": layers or shape["text_layers"]},
    })  # fmt: skip
    left = model.state_dict()  # of the blocks that remain
    model.load_state_dict({name: tensor.float() for name, tensor in state.items() if name in left})
    preprocess = Preprocess(size=shape["image_size"])
    return clip_of(model, name="tiny", preprocess=preprocess, tokenizer=open_clip.SimpleTokenizer())


class Case:
    """A case's file and tensors. What is read is compared; `unread` are the tensors that nothing looked at yet."""

    def __init__(self, file: Path) -> None:
        self.name, self.told = file.stem, json.loads(file.read_text())
        self.tensors = safetensors.torch.load_file(file.with_suffix(".safetensors"))
        self.method = originals.method_of(file.stem, self.told)
        self.unread, self.strange = set(self.tensors), set(self.told) - originals.COMPARED - set(originals.ABOUT)

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __getitem__(self, name: str) -> torch.Tensor:
        self.unread.discard(name)
        return self.tensors[name]

    def below(self, prefix: str) -> dict[str, torch.Tensor]:
        """The tensors whose names begin so, by the rest of their names."""
        return {name.removeprefix(prefix): self[name] for name in self.tensors if name.startswith(prefix)}

    def images(self, name: str = "inputs.images") -> Images:
        return Images(self[name].float())

    def bounds(self, original) -> dict:
        """How near each quantity has to come: as the case says, or as is usual."""
        return originals.TOLERANCES | original.tolerances | self.told.get("tolerances", {})


def near(ours, theirs, rel):
    assert ours.shape == theirs.shape
    assert torch.linalg.norm(ours.double() - theirs.double()) <= rel * torch.linalg.norm(theirs.double())


def close(ours, theirs, bound):
    torch.testing.assert_close(ours, theirs, **{"rtol": 0, **bound})


def equal(ours, theirs, bound):
    """The same for single numbers."""
    assert ours == pytest.approx(theirs, abs=bound["atol"], rel=bound.get("rtol", 0))


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
    if case_file.stem in originals.NO_TARGETS:
        pytest.skip(originals.NO_TARGETS[case_file.stem])
    case = check(tiny_clip, case_file)
    left = sorted({re.sub(r"\d+", "#", name) for name in case.unread} | case.strange)
    if left and case_file.is_relative_to(FIXTURES):
        pytest.fail(f"{case.name} holds what nothing is compared with: {', '.join(left)}", pytrace=False)
    if left:
        warnings.warn(f"{case.name} holds what nothing is compared with: {', '.join(left)}", stacklevel=1)


def check(clip, case_file) -> Case:
    """Compare all that a case holds with what its method does here."""
    case = Case(case_file)
    original = originals.METHODS.get(case.method)
    if original is None:
        pytest.fail(f"method {case.method} is not built: {case.name} has no entry in originals.METHODS", pytrace=False)
    if "name_lens" in case.told:
        names = [name.replace("_", " ") for name in case.told["config"]["classnames"]]
        assert [clip.text.count(name) for name in names] == case.told["name_lens"]
    if original.check:
        original.check(clip, original, case)
    elif case.method in parity_banked.CHECKS:
        parity_banked.CHECKS[case.method](clip, original, case)
    elif "cache_keys" in case:
        check_cache(clip, original, case)
    elif "init_forward.train_logits" in case:
        check_probe(clip, original, case)
    elif "logits" in case:
        check_untrained(clip, original, case)
    elif case.method == "ProLIP":
        parity_prolip.check_prolip(clip, original, case)
    elif case.told.get("runs") and parity_stages.has_stages(case):
        parity_stages.check_stages(clip, original, case)
    elif case.told.get("runs"):
        for run in case.told["runs"]:
            check_run(clip, original, case, run)
    else:
        pytest.fail(f"{case.name} is no kind of case that is known for {case.method}", pytrace=False)
    return case


def check_untrained(clip, original, case):
    learner, bounds = original.build(clip, case.told), case.bounds(original)
    assert not list(learner.parameters())
    images, classes = case.images(), learner.encode_classes()
    check_tokens(learner, original, case)
    texts = [clip.text(clip.text.prompts(learner.classes, template=template)) for template in learner.templates]
    close(torch.cat(texts), case["text_features_raw_per_prompt"], bounds["features"])
    close(clip.image(images), case["image_features_raw"], bounds["features"])
    close(torch.nn.functional.normalize(classes, dim=-1), case["classifier_normalised"], bounds["features"])
    logits = learner.logits(images, classes)
    close(logits, case["logits"], bounds["init_logits"])
    loss = torch.nn.functional.cross_entropy(logits, case["inputs.labels"])
    equal(loss.item(), case.told["ce_loss"], bounds["loss"])
    assert logits.argmax(-1).tolist() == case.told["top1_pred"]


def check_run(clip, original, case, run):
    """One training run of a case: every step's loss, gradients and parameters, and the logits around it."""
    told, bounds = case.told["runs"][run], case.bounds(original)
    learner = original.build(case.tensors if original.own_backbone else clip, case.told).train()
    case.unread -= {name for name in case.unread if original.own_backbone and name.startswith("backbone.")}
    parameters = dict(learner.named_parameters())
    check_drawn(parameters, original, case)
    start = case.below("init.")
    assert sorted(start) == sorted(case.told["trainable_names_in_order"])
    if getattr(learner, "ctx_init", "") and "start_of_the_original" not in case.told:
        assert torch.equal(learner.context, start["prompt_learner.ctx"])  # from words, as in the original
    if hasattr(learner, "openings"):
        assert torch.equal(learner.context, start["prompt_learner.ctx"])
    with torch.no_grad():
        for name, value in start.items():
            ours = part(parameters, original.ours(name))
            assert ours.shape == value.shape, name
            ours.copy_(value)
    assert sum(value.numel() for value in start.values()) == sum(p.numel() for p in parameters.values())
    check_tokens(learner, original, case)
    images, labels = case.images(), case["inputs.labels"]
    learner.new_classes = case.told["config"].get("new_classnames")
    check_start(learner, original, case, images)
    if told.get("stage") == "joint":  # after the stage of images alone, from where a run of that ended
        begin_joint(learner, original, case, run.removesuffix("_joint"))
    fit, per_epoch, total = settings(case.told, told)
    optimizer, n_epochs = make_optimizer(learner, fit), -(-total // per_epoch)
    if averaged := f"{run}.gauss_weights" in case:
        options = case.told["config"]["trainer_options"]
        fit = fit.model_copy(update={"average": Average(mu=options["GPA_MEAN"], sigma=options["GPA_STD"])})
    keeper = make_keeper(fit, n_epochs, lambda: 0)
    if averaged:
        assert keeper.weights == pytest.approx(case[f"{run}.gauss_weights"].tolist(), rel=1e-12)
    if original.decay_all:
        for group in optimizer.param_groups:
            group["weight_decay"] = fit.weight_decay
    compared = set()

    def compare(kind, bound, value):
        now = {name: value(p) for name, p in parameters.items()}
        for name, expected in case.below(f"{run}.{kind}.").items():
            near(part(now, original.ours(name)), expected, bound)
            compared.add(name)

    for step, expected in enumerate(told["losses"]):
        rate = set_learning_rate(optimizer, step, fit, per_epoch=per_epoch, total=total)
        if "lr_used" in told:
            assert rate == pytest.approx(told["lr_used"][step], rel=bounds["lr_rel"])
        components = told["loss_components"][step] if "loss_components" in told else {}
        told_by_parts = check_components(learner, original, case, components, bounds)
        optimizer.zero_grad()
        loss, logits = learner.backward(images, labels)
        equal(loss.item(), expected, bounds["loss"])
        if "ce" in components and "ce" not in told_by_parts:
            equal(torch.nn.functional.cross_entropy(logits, labels).item(), components["ce"], bounds["loss"])
        if (name := f"{run}.logits_train_step{step + 1}") in case:
            close(logits, case[name], bounds["final_logits"])
        compare(f"grad{step + 1}", bounds["gradient_rel_l2"], lambda p: p.grad)
        optimizer.step()
        if (step + 1) % per_epoch == 0:
            keeper.update(learner, (step + 1) // per_epoch)
        if step + 1 == total:
            keeper.restore(learner)
        compare(f"param{step + 1}", bounds["parameter_rel_l2"], lambda p: p.data)
    compare("final_averaged", bounds["parameter_rel_l2"], lambda p: p.data)
    assert compared == set(told.get("trainable", start))
    learner.eval()
    with torch.no_grad():
        for images in ("train", "eval"):
            seen = case.images("inputs.images" if images == "train" else "inputs.eval_images")
            ends = case.below(f"{run}.logits_final_{images}_images")
            for cosine in case.below(f"{run}.final_cosine_{images}_images").values():
                ends[""] = learner.clip.scale * cosine
            assert "" in ends
            for suffix, expected in ends.items():
                close(original.value("logits" + suffix)(learner, seen), expected, bounds["final_logits"])
            for plan in case.below(f"{run}.transport_final_{images}_images").values():
                close(original.value("transport")(learner, seen), plan, bounds["transport"])


def begin_joint(learner, original, case, run):
    """The second of two stages, from the parameters that a run of the first one ended with."""
    first, parameters = case.told["runs"][run], dict(learner.named_parameters())
    with torch.no_grad():
        learner.begin(1)
        for name in first["trainable"]:
            parameters[original.ours(name)].copy_(case[f"{run}.param{first['steps']}.{name}"])


def check_drawn(parameters, original, case):
    """What the original draws by itself, as numbers about each tensor: its shape, mean and deviation."""
    for name, drawn in case.told.get("start_of_the_original", {}).items():
        if isinstance(drawn, dict) and "std" in drawn:
            ours = part(parameters, original.ours(name)).detach()
            assert list(ours.shape) == drawn["shape"], name
            chance = 6 / ours.numel() ** 0.5
            assert ours.std().item() == pytest.approx(drawn["std"], rel=chance), name
            assert ours.mean().item() == pytest.approx(drawn["mean"], abs=chance * drawn["std"]), name


def check_tokens(learner, original, case):
    """The texts, token by token, apart from what is learned in them."""
    learner = getattr(learner, "inner", learner)  # of a method around another one
    kinds = {"inputs.token_ids": original.texts, "inputs.new_token_ids": original.texts,
             "inputs.teacher_token_ids": original.teacher_texts}  # fmt: skip
    for name, texts in kinds.items():
        if name not in case:
            continue
        new = name == "inputs.new_token_ids"
        learner.bind(case.told["config"]["new_classnames"] if new else learner.trained_classes)
        ids, prompts, text = case[name], texts(learner), learner.clip.text
        learner.bind(learner.trained_classes)
        rows = torch.cat([torch.nn.functional.pad(p.whole(), (0, 0, 0, ids.shape[1] - p.whole().shape[1]))
                          for p in prompts])  # fmt: skip
        ends = torch.cat([p.eot + p.shared.shape[-2] for p in prompts])
        assert torch.equal(ends, text.read(ids))
        n = learner.context.shape[-2] if texts is original.texts and hasattr(learner, "context") else 0
        first, expected = text.n_prefix_tokens, text.embed(ids)
        for ours, theirs, end in zip(rows, expected, ends.tolist(), strict=True):
            assert torch.equal(ours[:first], theirs[:first])
            assert torch.equal(ours[first + n : end + 1], theirs[first + n : end + 1])


def check_start(learner, original, case, images):
    """All that a case tells about the time before the first step."""
    bounds, told, labels = case.bounds(original), case.told, case["inputs.labels"]
    for name in [name.removeprefix("init_forward.") for name in case.tensors if name.startswith("init_forward.")]:
        value = original.value(name)
        if value is not None:
            bound = bounds.get(name, bounds["init_logits" if "logits" in name else "features"])
            close(value(learner, images), case[f"init_forward.{name}"], bound)
    if "zero_shot.logits_test" in case:
        zero_shot = original.value("frozen_logits")
        both = Images(torch.cat([images.pixels, case.images("inputs.eval_images").pixels]))
        close(zero_shot(learner, both), case["zero_shot.logits_test"], bounds["init_logits"])
    check_components(
        learner, original, case, {k: told[f"init_{k}"] for k in ("kg_score",) if f"init_{k}" in told}, bounds
    )
    if "init_ce" in told:
        logits = learner.logits(images, learner.encode_classes())
        equal(torch.nn.functional.cross_entropy(logits, labels).item(), told["init_ce"], bounds["loss"])


def check_components(learner, original, case, expected, bounds):
    """The parts that a loss is the sum of; -> the names of those that were compared."""
    ours = original.components(learner, case.images(), case["inputs.labels"]) if expected else {}
    for name, value in expected.items():
        if name in ours:
            equal(ours[name], value, bounds["loss"])
        elif name != "ce":
            case.strange.add(f"loss component {name}")
    return set(ours) & set(expected)


class Passes:
    """Features that were read pass by pass: the next one at each iteration."""

    def __init__(self, passes, labels):
        self.passes, self.labels = iter(passes), labels

    def __iter__(self):
        yield Images(features=next(self.passes)), self.labels


def check_cache(clip, original, case):
    """Tip-Adapter: the cache, its fine-tuning step by step, and the search on validation features."""
    results, config, bounds = case.told["results"], case.told["config"], case.bounds(original)
    learner = original.build(clip, case.told)
    classes = case["clip_weights"].T
    if classes.shape[1] == clip.image.embed_dim:
        near(torch.nn.functional.normalize(learner.encode_classes(), dim=-1), classes, 1e-5)
    learner.encode_classes = lambda: classes  # synthetic features have a width of their own
    splits = {name: (Images(features=case[f"{name}_features"]), case[f"{name}_labels"]) for name in ("val", "test")}

    @torch.no_grad()
    def accuracy(name):
        images, labels = splits[name]
        logits = learner.logits(images, classes)
        return logits, 100 * (logits.argmax(-1) == labels).double().mean().item()

    labels = case["cache_values"].argmax(-1)
    assert torch.equal(torch.nn.functional.one_hot(labels).float(), case["cache_values"])
    if learner.finetune:
        near(case["init.adapter_weight"], case["cache_keys"].T, 1e-6)  # the start of the keys
        learner._set_cache(case["init.adapter_weight"].clone(), labels)
        finetune(learner, original, case, lambda: accuracy("test"))
    else:
        learner.prepare(Passes(case["train_features_raw_per_augment_pass"], case["train_labels"]), None)
        near(learner.keys, case["cache_keys"].T, 1e-6)
        assert torch.equal(learner.labels, labels)
        logits, right = accuracy("val")
        close(logits, case["val_tip_logits_init_hp"], bounds["final_logits"])
        assert right == pytest.approx(results["val_tip_acc_init_hp"])
        for name, (images, true) in splits.items():
            known = learner.clip.scale * images.features @ classes.T
            close(known, case[f"{name}_zero_shot_logits"], bounds["final_logits"])
            right = 100 * (known.argmax(-1) == true).double().mean().item()
            assert right == pytest.approx(results[f"{name}_zero_shot_acc"])
    learner.conclude([], [splits["val"]])
    best = [learner.beta.item(), learner.alpha.item()]
    assert best == pytest.approx(results["best_beta_alpha"])
    logits, right = accuracy("test")
    name, key = ("final", "test_acc_final_best_hp") if learner.finetune else ("tip", "test_tip_acc_best_hp")
    close(logits, case[f"test_logits_{name}_best_hp" if learner.finetune else "test_tip_logits_best_hp"],
          bounds["final_logits"])  # fmt: skip
    assert right == pytest.approx(results[key])
    if "reported" in results:  # the better of two accuracies, which we do not do: their arithmetic, on our numbers
        assert max([right, *results["test_acc_per_epoch"]]) == pytest.approx(results["reported"])
    grid = case["val_acc_grid_beta_outer_alpha_inner"]
    (betas, alphas), tops = config["cfg"]["search_step"], config["cfg"]["search_scale"]
    assert grid.numel() == betas * alphas
    for at, expected in enumerate(grid.flatten().tolist()):
        for name, i, n, top in (("beta", at // alphas, betas, tops[0]), ("alpha", at % alphas, alphas, tops[1])):
            getattr(learner, name).fill_(0.1 + i * (top - 0.1) / n)
        assert accuracy("val")[1] == pytest.approx(expected, abs=1e-4)


def finetune(learner, original, case, accuracy):
    """Tip-Adapter-F: train the cache, and end with the epoch that the original takes: the first of equally good."""
    results, config, bounds = case.told["results"], case.told["config"], case.bounds(original)
    sizes, n_epochs = case.told["train_step_batch_sizes"], config["cfg"]["train_epoch"]
    total, per_epoch = len(sizes), len(sizes) // n_epochs
    assert per_epoch * n_epochs == total
    assert sizes == n_epochs * sizes[:per_epoch]
    fit, _, _ = settings(case.told, {"steps": total})
    optimizer, parameters = make_optimizer(learner, fit), dict(learner.named_parameters())
    batches = zip(*(case[f"train_step_{part}_concat"].split(sizes) for part in ("features", "labels")), strict=True)
    ends, keys, compared = [], [], 0
    for step, ((features, labels), expected) in enumerate(zip(batches, results["losses"], strict=True)):
        rate = set_learning_rate(optimizer, step, fit, per_epoch=per_epoch, total=total)
        assert rate == pytest.approx(results["lr_used"][step], rel=bounds["lr_rel"])
        optimizer.zero_grad()
        loss, _ = learner.backward(Images(features=features), labels)
        equal(loss.item(), expected, bounds["loss"])
        for name, value in case.below(f"run.grad{step + 1}.").items():
            near(parameters[original.ours(name)].grad, value, bounds["gradient_rel_l2"])
            compared += 1
        optimizer.step()
        for name, value in case.below(f"run.param{step + 1}.").items():
            near(parameters[original.ours(name)].data, value, bounds["parameter_rel_l2"])
            compared += 1
        if (step + 1) % per_epoch == 0:
            logits, right = accuracy()
            close(logits, case[f"test_logits_after_epoch{len(ends)}"], bounds["final_logits"])
            ends.append(right)
            keys.append(learner.keys.detach().clone())
    assert compared >= 2
    assert ends == pytest.approx(results["test_acc_per_epoch"])
    learner._set_cache(keys[ends.index(max(ends))], learner.labels)


def check_probe(clip, original, case):
    """LP++: the start, the epochs one by one, and the one that is best on validation images."""
    results, bounds, texts = case.told["results"], case.bounds(original), case["clip_weights"].T
    images = {name: Images(features=case[f"{name}_features_raw"]) for name in ("train", "val", "test")}
    labels = {name: case[f"{name}_labels"] for name in images}
    total = len(results["losses"])

    def fresh(n_epochs):
        learner = original.build(clip, case.told)
        learner.iterations, learner.zero_shot_features = n_epochs, lambda templates: texts
        learner.bias.data.copy_(case["init.classifier.bias"])
        return learner

    def compare(learner, prefix, bound, value=lambda p: p.data):
        ours, theirs = dict(learner.named_parameters()), case.below(prefix)
        for name, expected in theirs.items():
            near(value(ours[original.ours(name)]), expected.squeeze(0), bound)
        return len(theirs)

    @torch.no_grad()
    def judged(learner, name):
        logits = learner.logits(images[name], learner.encode_classes())
        return logits, 100 * (logits.argmax(-1) == labels[name]).double().mean().item()

    learner, compared, weights = fresh(total), 0, []
    features = torch.nn.functional.normalize(images["train"].features, dim=-1)
    for epoch, (loss, expected) in enumerate(
        zip(learner.descend(features, labels["train"]), results["losses"], strict=True), 1
    ):
        equal(loss.item(), expected, bounds["loss"])
        for kind in ("grad", "summed_grad"):
            compared += compare(learner, f"run.{kind}{epoch}.", bounds["gradient_rel_l2"], lambda p: p.grad)
        compared += compare(learner, f"run.param{epoch}.", bounds["parameter_rel_l2"])
        weights.append(learner.weight.detach().clone())
        assert judged(learner, "val")[1] == pytest.approx(results["val_acc_per_epoch"][epoch - 1])
    assert compared == 6 * len(results["recorded_epochs_from_1"])

    for n_epochs, selects, name, key, prefix in (
        (0, False, "train", "init_forward.train_logits", "init."),
        (total, False, "test", "run.test_logits_last_epoch", f"run.param{total}."),
        (total, True, "test", "run.test_logits_best_epoch", f"run.param{results['best_epoch_from_0'] + 1}."),
    ):
        learner = fresh(n_epochs)
        learner.prepare([(images["train"], labels["train"])], [(images["val"], labels["val"])] if selects else None)
        n = compare(learner, prefix, bounds["parameter_rel_l2" if n_epochs else "lr_and_init_alpha_rel"])
        assert n == 3 or selects  # not every epoch is recorded
        logits, right = judged(learner, name)
        close(logits, case[key], bounds["final_logits"])
    assert right == pytest.approx(results["test_acc_of_best_epoch"])
    assert torch.equal(learner.weight, weights[results["best_epoch_from_0"]])
    assert judged(learner, "val")[1] == pytest.approx(results["best_val_acc"])


def part(tensors, name):
    """A tensor by name, or a part of it: "tokens[2]", "tokens[1:]"."""
    name, _, index = name.partition("[")
    assert name in tensors, f"{name} is not trained here, but {', '.join(tensors)}"
    if not index:
        return tensors[name]
    first, colon, last = index.rstrip("]").partition(":")
    return tensors[name][slice(int(first), int(last) if last else None) if colon else int(first)]


def settings(case, told):
    """Our settings for a run of a case, its steps in an epoch and in all."""
    optim = {"momentum": 0.0, "betas": (0.9, 0.999), "eps": 1e-8, **(told.get("optim") or case["config"]["optim"])}
    assert not optim.get("nesterov")
    assert not optim.get("dampening")
    per_epoch, total = told.get("num_batches_per_epoch"), told["steps"]
    sched = case["config"].get("sched", "")
    if "CosineAnnealing per iteration" in sched:
        floor = float(re.search(r"eta_min=([\d.e+-]+)", sched)[1])
        schedule = Schedule(every="step", warmup="none", floor=floor)
    elif sched:
        pytest.fail(f"the schedule '{sched}' is not known", pytrace=False)
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


# --- the comparison itself: altered copies of a case have to fail


@pytest.fixture(scope="session")
def own_clip(tiny_clip, parity_folder) -> Clip:
    """That of the cases in this repository, whatever folder was asked for."""
    return tiny_clip if parity_folder == FIXTURES else load_tiny(FIXTURES)


def altered(folder, name, change) -> Path:
    """A copy of one of our cases, of one run, with `change(json, tensors)` made in it."""
    told = json.loads((FIXTURES / "cases" / f"{name}.json").read_text())
    tensors = safetensors.torch.load_file(FIXTURES / "cases" / f"{name}.safetensors")
    told["runs"] = dict(list(told.get("runs", {}).items())[:1])
    change(told, tensors)
    (folder / f"{name}.json").write_text(json.dumps(told))
    safetensors.torch.save_file({key: t.contiguous() for key, t in tensors.items()}, folder / f"{name}.safetensors")
    return folder / f"{name}.json"


def shift(values, key, by):
    values[key] = values[key] + by


WRONG = {
    "a loss": ("coop_ctxinit", lambda told, _: shift(told["runs"]["paper"]["losses"], 1, 1e-3)),
    "a rate": ("coop_ctxinit", lambda told, _: shift(told["runs"]["paper"]["lr_used"], 2, 1e-6)),
    "a gradient": ("coop_ctxinit", lambda _, t: shift(t, "paper.grad2.prompt_learner.ctx", 1e-4)),
    "a parameter": ("coop_ctxinit", lambda _, t: shift(t, "paper.param3.prompt_learner.ctx", 1e-4)),
    "a start": ("coop_ctxinit", lambda _, t: shift(t, "init.prompt_learner.ctx", 1e-3)),
    "a feature": ("coop_ctxinit", lambda _, t: shift(t, "init_forward.text_features_raw", 1e-3)),
    "final logits": ("coop_ctxinit", lambda _, t: shift(t, "paper.logits_final_eval_images", 1e-3)),
    "a token": ("coop_ctxinit", lambda _, t: t["inputs.token_ids"].__setitem__((2, 7), 320)),
    "a name's length": ("coop_ctxinit", lambda told, _: shift(told["name_lens"], 3, 1)),
    "an option": ("coop_ctxinit", lambda told, _: told["config"]["trainer_options"].update(CTX_INIT="a photo of")),
    "a tolerance": ("coop_ctxinit", lambda told, _: told.update(tolerances={"loss": {"atol": 0.0}})),
    "a trained tensor": ("coop_ctxinit", lambda told, _: told["trainable_names_in_order"].append("adapter.weight")),
    "a distance": ("kgcoop", lambda told, _: shift(told, "init_kg_score", 1e-3)),
    "a frozen feature": ("kgcoop", lambda _, t: shift(t, "init_forward.frozen_text_features_normalised", 1e-3)),
    "a grid point": ("tip_adapter_synthetic", lambda _, t: shift(t, "val_acc_grid_beta_outer_alpha_inner", 2.5)),
    "an epoch": ("tip_adapter_f_synthetic", lambda told, _: shift(told["results"]["test_acc_per_epoch"], 0, 5.0)),
    "the best epoch": ("lp_plus_plus_k5_s1", lambda told, _: shift(told["results"], "best_epoch_from_0", 1)),
    "a score": ("open_world", lambda told, _: shift(told["results"], "openworld_auc", 1e-6)),
    "a kind of score": ("open_world", lambda told, _: told["config"].update(score="energy")),
    "a result that is new": ("open_world", lambda told, _: told["results"].update(open_f1=0.5)),
    "a multiplier": ("clap_l2_adaptative_dtd", lambda _, t: shift(t, "paper.lambda_after_epoch3", 1e-3)),
    "a mean of texts": ("zs_lp_imagenet", lambda _, t: shift(t, "init.prototypes", 1e-3)),
    "a chosen step": ("crossmodal_k5_s2_zeroshot",
                      lambda told, _: shift(told["results"]["paper"], "best_iteration_from_0", 100)),
    "a drawn image": ("crossmodal_k5_s2_zeroshot", lambda _, t: shift(t, "paper.image_indices", -1)),
    "a batch": ("tip_adapter_f_synthetic", lambda told, _: told.update(train_step_batch_sizes=[8, 2, 8, 8, 2, 8])),
}  # fmt: skip


SLOWER = ("final logits", "a parameter", "a rate", "the best epoch", "a chosen step")


@pytest.mark.parametrize("what", [pytest.param(w, marks=[pytest.mark.slow] * (w in SLOWER)) for w in WRONG])
def test_parity_notices(what, own_clip, tmp_path):
    name, change = WRONG[what]
    with pytest.raises(AssertionError):
        check(own_clip, altered(tmp_path, name, change))


def test_parity_says_what_it_did_not_compare(own_clip, tmp_path):
    def add(told, tensors):
        told["config"]["trainer_options"].update(N_CTX=7, CSC=True)  # of no effect next to a phrase
        tensors["init_forward.mystery"], told["verdict"] = torch.zeros(2), 1

    case = check(own_clip, altered(tmp_path, "coop_ctxinit", add))
    assert {name for name in case.unread if not name.startswith("stress.")} == {"init_forward.mystery"}
    assert case.strange == {"verdict"}


def dept_case():
    options = {"LINEAR_PROBE": {"TYPE": "linear", "WEIGHT": 0.3, "TEST_TIME_FUSION": True},
               "FILM": {"LINEAR_PROBE": True}, "COCOOP": {"N_CTX": 3, "CTX_INIT": ""}}  # fmt: skip
    config = {"method": "DePT", "inner": "cocoop", "classnames": ["a", "b"], "trainer_options": options}
    return {"config": config, "runs": {"paper": {"optim": {"lr_exp": 2.0}}}}


def plot_case():
    options = {"N_CTX": 4, "CSC": False, "CTX_INIT": True, "CLASS_TOKEN_POSITION": "end", "N": 2, "M": 1, "N_CTX_V": 3}
    config = {"method": "PLOTPP", "classnames": ["a", "b"], "openings": ["a photo of", "this is a", "one"],
              "trainer_options": options, "eps": 0.2, "max_iter": 3, "threshold": 1e-4}  # fmt: skip
    return {"config": config}


def two_stage_case(**options):
    lora = {"params": ["q", "o"], "r": 3, "alpha": 2, "dropout_rate": 0, "position": "all", "encoder": "text"}
    options = {"peft": "lora", "ln_modality": "both", "ln_vision_start": 0, "ln_text_start": 0, "shots": 2,
               "n_iters": 5, "n_iters_frac": 1.0, "setting": "standard", **lora, **options}  # fmt: skip
    config = {"method": "2SFS", "classnames": ["a", "b"], "template": "{}", "trainer_options": options}
    return {"config": config, "runs": {"paper_stage1": {"steps": 10}}}


def test_options_reach_the_learner(own_clip):
    dept = originals.METHODS["DePT"].build(own_clip, dept_case())
    assert (dept.weight, dept.rate, dept.inner.context.shape[0]) == (0.3, 2.0, 3)
    plot = originals.METHODS["PLOTPP"].build(own_clip, plot_case())
    assert (plot.context.shape[:2], plot.tokens.shape[:2]) == ((2, 3), (1, 3))
    assert plot.plan.keywords == {"epsilon": 0.2, "iterations": 3, "threshold": 1e-4, "stop": "batch"}
    two = originals.METHODS["2SFS"].build(own_clip, two_stage_case())
    shapes = {name: tuple(p.shape) for name, p in two.tuned.named_parameters() if ".0." in name}
    width = own_clip.text.width
    assert shapes == {f"layers.text.0.{site}.{ab}": shape for site in "qo"
                      for ab, shape in (("a", (3, width)), ("b", (width, 3)))}  # fmt: skip
    name = "transformer.resblocks.0.attn.proj.w_lora_B"
    assert originals.METHODS["2SFS"].ours(name) == "tuned.layers.text.0.o.b"


@pytest.mark.parametrize(("case", "path"), [
    (dept_case(), ()), (dept_case(), ("COCOOP",)), (dept_case(), ("LINEAR_PROBE",)), (dept_case(), ("FILM",)),
    (plot_case(), ()), (two_stage_case(), ()),
], ids=str)  # fmt: skip
def test_options_that_nothing_follows_are_told(case, path, own_clip):
    node = case["config"]["trainer_options"]
    for name in path:
        node = node[name]
    node["NEW"] = 1
    with pytest.raises(AssertionError, match="NEW"):
        originals.METHODS[case["config"]["method"]].build(own_clip, case)


def test_parity_of_a_method_that_is_not_built_fails(own_clip, tmp_path):
    file = altered(tmp_path, "coop_ctxinit", lambda told, _: told["config"].update(method="NewMethod"))
    with pytest.raises(pytest.fail.Exception, match="NewMethod is not built"):
        check(own_clip, file)
    assert set(originals.NO_TARGETS) == {"lora_nonzero_b_mergepath"}


def test_the_template_is_that_of_all_names():
    config = {"classnames": ["a", "type_b"]}
    texts = ["a type of a", "a a, of type", "a type b, of type"]
    assert originals.template_of({"config": config, "texts_tokenised_in_order": texts}) == "a {}, of type"
    texts = ["no a.", "no type_b."]
    assert originals.template_of({"config": config, "texts_tokenised_in_order": texts}) == "no {}."


@pytest.mark.parametrize("sizes", [[10, 8], [18], [5, 6, 7]], ids=len)
def test_parity_of_tip_adapter_f_with_other_steps_in_an_epoch(sizes, own_clip, tmp_path):
    """The numbers of four epochs of such steps, from the method's formulas alone."""

    def change(told, tensors):
        n_epochs, cfg, results = 4, told["config"]["cfg"], told["results"]
        cfg["train_epoch"], told["config"]["optim"]["lr"] = n_epochs, 0.05
        told["train_step_batch_sizes"] = sizes * n_epochs
        for part in ("features", "labels"):
            rows = tensors[f"train_step_{part}_concat"][:18]
            tensors[f"train_step_{part}_concat"] = torch.cat([rows] * n_epochs)
        for name in [name for name in tensors if name.startswith(("run.", "test_logits"))]:
            del tensors[name]
        keys = tensors["init.adapter_weight"].clone().requires_grad_()
        optimizer = torch.optim.AdamW([keys], lr=0.05, eps=1e-4, weight_decay=0.01)

        def logits(features, beta=cfg["init_beta"], alpha=cfg["init_alpha"]):
            near = (-beta * (1 - features @ keys.T)).exp() @ tensors["cache_values"]
            return 100 * features @ tensors["clip_weights"] + alpha * near

        def accuracy(part, *at):
            given = logits(tensors[f"{part}_features"], *at).detach()
            return given, 100 * (given.argmax(-1) == tensors[f"{part}_labels"]).double().mean().item()

        results.update(losses=[], lr_used=[], test_acc_per_epoch=[])
        ends, steps = [], list(zip(*(tensors[f"train_step_{part}_concat"].split(told["train_step_batch_sizes"])
                                     for part in ("features", "labels")), strict=True))  # fmt: skip
        for step, (features, labels) in enumerate(steps):
            rate = 0.05 * (1 + np.cos(np.pi * step / len(steps))) / 2
            optimizer.param_groups[0]["lr"] = rate
            loss = torch.nn.functional.cross_entropy(logits(features), labels)
            optimizer.zero_grad()
            loss.backward()
            tensors[f"run.grad{step + 1}.adapter_weight"] = keys.grad.clone()
            optimizer.step()
            tensors[f"run.param{step + 1}.adapter_weight"] = keys.detach().clone()
            results["losses"].append(loss.item())
            results["lr_used"].append(rate)
            if (step + 1) % len(sizes) == 0:
                after, right = accuracy("test")
                tensors[f"test_logits_after_epoch{len(ends)}"] = after
                results["test_acc_per_epoch"].append(right)
                ends.append(keys.detach().clone())
        best = int(np.argmax(results["test_acc_per_epoch"]))
        keys.data.copy_(ends[best])
        (top_beta, top_alpha), (n_beta, n_alpha) = cfg["search_scale"], cfg["search_step"]
        grid = [(0.1 + i * (top_beta - 0.1) / n_beta, 0.1 + j * (top_alpha - 0.1) / n_alpha)
                for i in range(n_beta) for j in range(n_alpha)]  # fmt: skip
        accuracies = [accuracy("val", *at)[1] for at in grid]
        tensors["val_acc_grid_beta_outer_alpha_inner"] = torch.tensor(accuracies).view(n_beta, n_alpha)
        results["best_beta_alpha"] = list(grid[int(np.argmax(accuracies))])
        tensors["test_logits_final_best_hp"], right = accuracy("test", *results["best_beta_alpha"])
        results["test_acc_final_best_hp"] = right
        results["reported"] = max(right, *results["test_acc_per_epoch"])

    case = check(own_clip, altered(tmp_path, "tip_adapter_f_synthetic", change))
    assert not case.unread
    assert len(set(case.told["results"]["test_acc_per_epoch"])) > 1
