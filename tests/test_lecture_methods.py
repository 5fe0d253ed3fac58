"""The lecture's methods, each against something that computes the same in another way."""

import errno
import json
from itertools import pairwise
from pathlib import Path

import pytest
import safetensors.torch
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor

from vlprompt.config.schema import Fit
from vlprompt.errors import UserError
from vlprompt.interop.peft import write_peft
from vlprompt.learners.base import Learner
from vlprompt.learners.coop import CoOp
from vlprompt.learners.dylora import DyLoRA
from vlprompt.learners.hard_prompts import HardPrompts, read_descriptions
from vlprompt.learners.llama_adapter import LlamaAdapter
from vlprompt.learners.lora import LoRA
from vlprompt.learners.lora_plus import LoRAPlus
from vlprompt.learners.p_tuning import PTuning
from vlprompt.learners.vpt import VPT
from vlprompt.learners.zero_shot import ZeroShot
from vlprompt.results import learner_files as saved
from vlprompt.towers import Images
from vlprompt.training.optim import make_optimizer

CLASSES = ["cat", "golden_retriever", "hot air balloon"]
LABELS = torch.tensor([2, 0, 1, 1])
CLIP, MODEL = tiny.clip("vit", torch.float64)
IMAGES = Images(tiny.pixels(MODEL, 4))


def learner(kind: type[Learner], seed: int = 0, **settings: object) -> Learner:
    """On the tiny CLIP in float64."""
    torch.manual_seed(seed)
    return kind(CLIP, CLASSES, **settings).double()


def scatter(learner: Learner, seed: int = 5) -> Learner:
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in learner.parameters():
            p.normal_(0, 0.3)
    return learner


@torch.no_grad()
def logits(learner: Learner) -> Tensor:
    return learner.eval()(IMAGES, learner.encode_classes())


def close(a: Tensor, b: Tensor, bound: float = 1e-12) -> bool:
    return a.shape == b.shape and bool((a - b).norm() <= bound * b.norm())


def gradients(learner: Learner, mode: bool = True) -> dict[str, Tensor]:
    learner.zero_grad()
    learner.train(mode).backward(IMAGES, LABELS)
    return {name: p.grad for name, p in learner.named_parameters()}


# --- hard prompts


def test_one_template_is_zero_shot():
    for template in ("a photo of a {}.", "art of the {}"):
        assert close(logits(learner(HardPrompts, templates=template)), logits(learner(ZeroShot, templates=template)))


def test_ensembles_are_those_of_zero_shot():
    for templates in ("openai_7", ["a photo of a {}.", "a {} in a video game."]):
        assert close(logits(learner(HardPrompts, templates=templates)), logits(learner(ZeroShot, templates=templates)))


def descriptions(folder: Path, texts: object) -> str:
    path = folder / "descriptions.json"
    path.write_text(json.dumps(texts), encoding="utf-8")
    return str(path)


TEXTS = {
    "Cat": ["A small animal with whiskers.", "A cat sleeps on a sofa.", "Fur."],
    "golden retriever": "A dog with a golden coat.",
    "hot air balloon": ["It floats.", "A large bag of hot air over a basket."],
    "not asked for": ["Something else."],
}


def by_open_clip(texts: list[list[str]]) -> Tensor:
    """Logits of classes in several texts, by open_clip's own text encoder."""
    with torch.no_grad():
        features = [F.normalize(MODEL.encode_text(CLIP.text.tokenize(t)), dim=-1).mean(0) for t in texts]
        image = F.normalize(MODEL.encode_image(IMAGES.pixels), dim=-1)
        return CLIP.scale * image @ F.normalize(torch.stack(features), dim=-1).T


def test_descriptions_are_averaged_for_each_class(tmp_path):
    file = descriptions(tmp_path, TEXTS)
    texts = [TEXTS["Cat"], [TEXTS["golden retriever"]], TEXTS["hot air balloon"]]
    assert close(logits(learner(HardPrompts, templates=None, descriptions=file)), by_open_clip(texts))
    both = learner(HardPrompts, templates=["a photo of a {}.", "art of {}."], descriptions=file)
    names = ["cat", "golden retriever", "hot air balloon"]
    more = [[f"a photo of a {n}.", f"art of {n}.", *t] for n, t in zip(names, texts, strict=True)]
    assert both.texts() == more
    assert close(logits(both), by_open_clip(more))


def test_features_of_a_class_are_phrased(tmp_path):
    file = descriptions(tmp_path, {"cat": ["whiskers", "a long tail"], "dog": ["a wet nose"]})
    hard = learner(HardPrompts, templates=None, descriptions=file, phrase="a {}, which has {description}.")
    hard.bind(["dog", "cat"])
    expected = [["a dog, which has a wet nose."], ["a cat, which has whiskers.", "a cat, which has a long tail."]]
    assert hard.texts() == expected
    assert close(logits(hard), by_open_clip(expected))


def test_a_long_text_loses_its_last_words(tmp_path):
    fitting = " ".join(f"red{i % 10}" for i in range(37))  # two tokens a word; 75 fit
    file = descriptions(tmp_path, {name: [f"{fitting} red1 red2 red3"] for name in CLASSES})
    hard = learner(HardPrompts, templates=None, descriptions=file)
    assert CLIP.text.count(fitting) == 74
    assert hard.texts() == [[fitting]] * 3


def test_wordings_that_cannot_be_used_are_refused(tmp_path):
    with pytest.raises(UserError, match="no wording"):
        learner(HardPrompts, templates=None)
    with pytest.raises(UserError, match=r"exactly one \{\}"):
        learner(HardPrompts, templates=["a photo."])
    with pytest.raises(UserError, match="unknown template ensemble 'openai'"):
        learner(HardPrompts, templates="openai")
    file = descriptions(tmp_path, {"cat": ["Fur."]})
    with pytest.raises(UserError, match="not 2 of these 3: golden_retriever, hot air balloon"):
        learner(HardPrompts, descriptions=file).encode_classes()
    with pytest.raises(UserError, match=r"\{description\} is missing"):
        learner(HardPrompts, descriptions=file, phrase="a {}.")
    for wrong in (["Fur."], {"cat": []}, {"cat": [3]}, {"cat": [" "]}):
        with pytest.raises(UserError, match="another form"):
            read_descriptions(Path(descriptions(tmp_path, wrong)))
    (tmp_path / "no.json").write_text("{")
    for path in (tmp_path / "no.json", tmp_path / "missing.json"):
        with pytest.raises(UserError, match="cannot be read"):
            read_descriptions(path)


# --- P-tuning


@pytest.mark.parametrize("settings", [{"ctx_init": "a photo of a"}, {"n_context": 3}], ids=["phrase", "random"])
def test_p_tuning_without_encoder_is_coop(settings):
    settings = {"n_context": None, **settings}
    ours = {name.replace("n_context", "n_tokens"): value for name, value in settings.items() if value is not None}
    coop, tuned = learner(CoOp, **settings), learner(PTuning, encoder="none", **ours)
    assert torch.equal(tuned.tokens["text"].start, coop.context)
    assert close(logits(tuned), logits(coop))
    assert close(gradients(tuned)["tokens.text.start"], gradients(coop)["context"])


def test_p_tuning_of_images_without_encoder_is_shallow_vpt():
    vpt, tuned = learner(VPT, n_tokens=3), learner(PTuning, encoder="none", n_tokens=3, towers="image")
    assert torch.equal(tuned.tokens["image"].start, vpt.tokens[0])
    assert close(logits(tuned), logits(vpt))
    assert close(gradients(tuned)["tokens.image.start"], gradients(vpt)["tokens"][0])


def test_both_towers_are_both_alone():
    both = scatter(learner(PTuning, encoder="mlp", towers="both", ctx_init="a photo of a"))
    text, image = (learner(PTuning, encoder="mlp", towers=t) for t in ("text", "image"))
    text.load_state_dict({k: t for k, t in both.state_dict().items() if ".text." in k})
    image.load_state_dict({k: t for k, t in both.state_dict().items() if ".image." in k})
    assert torch.equal(both.encode_images(IMAGES), image.encode_images(IMAGES))
    assert close(both.tokens["text"](), text.tokens["text"]())


def test_the_recurrent_encoder_reads_tokens_from_both_sides():
    tuned = learner(PTuning, n_tokens=5)
    (influence,) = torch.autograd.grad(tuned.tokens["text"]()[2].sum(), tuned.tokens["text"].start)
    assert (influence.abs().sum(1) > 0).all()  # an MLP would see one row
    tuned = learner(PTuning, n_tokens=5, encoder="mlp")
    (influence,) = torch.autograd.grad(tuned.tokens["text"]()[2].sum(), tuned.tokens["text"].start)
    assert (influence.abs().sum(1) > 0).tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("encoder", ["none", "mlp", "lstm"])
def test_the_encoder_is_dropped_after_fitting(encoder, tmp_path):
    tuned = scatter(learner(PTuning, encoder=encoder, towers="both"))
    before, trained = logits(tuned), tuned.n_trained
    tuned.conclude([], None)
    assert close(logits(tuned), before)
    assert tuned.n_trained == trained  # what was trained does not become less
    assert {name: tuple(t.shape) for name, t in tuned.state_dict().items()} == {
        "tokens.image.start": (4, 48),
        "tokens.text.start": (4, 32),
    }
    saved.save(tuned, tmp_path, {})
    again = learner(PTuning, seed=1, encoder=encoder, towers="both")
    saved.load_tensors(again, tmp_path)
    assert torch.equal(logits(again), logits(tuned))
    safetensors.torch.save_file({"tokens.text.start": torch.zeros(4, 32)}, tmp_path / saved.TENSORS)
    with pytest.raises(UserError, match="does not fit PTuning"):
        saved.load_tensors(learner(PTuning, encoder=encoder, towers="both"), tmp_path)


def test_a_phrase_without_text_tokens_is_refused():
    with pytest.raises(UserError, match=r"method\.towers=text or both"):
        learner(PTuning, towers="image", ctx_init="a photo of a")


# --- LLaMA-Adapter


def by_hand(model: torch.nn.Module, tokens: Tensor, gates: Tensor) -> Tensor:
    """Image features, with attention written out in the topmost blocks: two softmaxes, the second times its gate."""
    visual, blocks = model.visual, model.visual.transformer.resblocks
    x = visual.conv1(IMAGES.pixels).flatten(2).mT
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], 1) + visual.positional_embedding
    x = visual.ln_pre(x)
    for layer, block in enumerate(blocks):
        u, attn, h = block.ln_1(x), block.attn, block.attn.num_heads
        weights, biases = attn.in_proj_weight.chunk(3), attn.in_proj_bias.chunk(3)
        q, k, v = ((u @ w.T + b).unflatten(-1, (h, -1)) for w, b in zip(weights, biases, strict=True))
        scale = q.shape[-1] ** -0.5
        out = torch.einsum("bhnm,bmhc->bnhc", (torch.einsum("bnhc,bmhc->bhnm", q, k) * scale).softmax(-1), v)
        if (prompted := layer - len(blocks) + len(tokens)) >= 0:
            pk, pv = (
                (tokens[prompted] @ w.T + b).unflatten(-1, (h, -1))
                for w, b in zip(weights[1:], biases[1:], strict=True)
            )
            shares = (torch.einsum("bnhc,phc->bhnp", q, pk) * scale).softmax(-1)
            out = out + torch.einsum("bhnp,phc->bnhc", shares * gates[prompted].tanh()[:, None, None], pv)
        x = x + attn.out_proj(out.flatten(-2))
        x = x + block.mlp(block.ln_2(x))
    return visual.ln_post(x[:, 0]) @ visual.proj


def test_gated_attention_is_that_written_by_hand():
    adapter = scatter(learner(LlamaAdapter, n_tokens=4, depth=2, towers="image"))
    tokens, gates = (p.detach() for p in adapter.prompted["image"].parameters())
    with torch.no_grad():
        assert close(adapter.encode_images(IMAGES), by_hand(MODEL, tokens, gates))
        assert close(CLIP.image(IMAGES), by_hand(MODEL, tokens, 0 * gates))


def test_a_closed_gate_is_the_frozen_model_whatever_the_prompts():
    for towers in ("image", "text", "both"):
        adapter = learner(LlamaAdapter, n_tokens=4, depth=3, towers=towers, std=3.0)
        assert close(logits(adapter), logits(learner(ZeroShot)))
        of_each = gradients(adapter)
        assert all(bool(g.any()) == name.endswith("gates") for name, g in of_each.items())  # only they can open it
        with torch.no_grad():
            for name, p in adapter.named_parameters():
                if name.endswith("gates"):
                    p.fill_(0.3)
        assert not close(logits(adapter), logits(learner(ZeroShot)), 1e-3)


def test_only_the_topmost_blocks_are_prompted():
    adapter = learner(LlamaAdapter, n_tokens=4, depth=2)
    assert sorted(adapter.edits("image")) == sorted(adapter.edits("text")) == [1, 2]
    with pytest.raises(UserError, match=r"method\.depth is 4, allowed is 1 to 3"):
        learner(LlamaAdapter, depth=4)


def test_the_gate_is_squashed_or_not():
    squashed, linear = (scatter(learner(LlamaAdapter, depth=2, gate=gate)) for gate in ("tanh", "linear"))
    with torch.no_grad():
        for module in linear.prompted.values():
            module.gates.tanh_()
    assert close(logits(squashed), logits(linear))


# --- LoRA+


def test_lora_plus_with_ratio_one_is_lora():
    settings = {"rank": 3, "alpha": 2.0, "sites": ["q", "v", "fc1"]}
    plus, plain = learner(LoRAPlus, ratio=1.0, **settings), learner(LoRA, **settings)
    for fitted in (plus, plain):
        optimizer = make_optimizer(fitted, Fit(optimizer="adamw", lr=0.01, weight_decay=0.1, epochs=1))
        for _ in range(3):
            gradients(fitted)
            optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(plus.parameters(), plain.parameters(), strict=True))
    assert not close(logits(plus), logits(learner(ZeroShot)), 1e-3)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_second_matrix_has_the_rate_times_the_ratio(optimizer):
    plus = learner(LoRAPlus, ratio=8.0)
    names = {id(p): name for name, p in plus.named_parameters()}
    groups = make_optimizer(plus, Fit(optimizer=optimizer, lr=0.002, epochs=1)).param_groups
    rates = {names[id(p)][-2:]: group["lr"] for group in groups for p in group["params"]}
    assert rates == {".a": 0.002, ".b": 0.016}
    assert sum(len(group["params"]) for group in groups) == len(names)
    with pytest.raises(UserError, match=r"method\.ratio is 0"):
        learner(LoRAPlus, ratio=0.0)


# --- DyLoRA


def test_dylora_at_full_rank_is_lora():
    settings = {"rank": 4, "alpha": 2.0, "sites": ["q", "v", "o", "fc2"]}
    plain, dynamic = (scatter(learner(kind, **settings)) for kind in (LoRA, DyLoRA))
    assert close(logits(dynamic), logits(plain))
    ours = gradients(dynamic, mode=False)
    assert all(close(ours[name], g) for name, g in gradients(plain, mode=False).items())
    always = scatter(learner(DyLoRA, min_rank=4, **settings))  # trains nothing but the full rank
    ours = gradients(always)
    assert all(close(ours[name], g) for name, g in gradients(plain).items())


def test_each_rank_is_lora_of_the_first_rows_and_columns():
    dynamic = scatter(learner(DyLoRA, rank=4, alpha=2.0, sites=["q", "fc1"]))
    seen = []
    for rank in (1, 2, 3, 4):
        plain = learner(LoRA, rank=rank, alpha=2.0, sites=["q", "fc1"])
        cut = {k: t[:rank] if k.endswith(".a") else t[:, :rank] for k, t in dynamic.state_dict().items()}
        plain.load_state_dict(cut)
        dynamic.use_rank(rank)
        seen.append(logits(dynamic))
        assert close(seen[-1], logits(plain))
        with torch.no_grad():
            merged = dynamic.merged()
            assert close(merged.image(IMAGES), dynamic.encode_images(IMAGES))
            assert close(merged.text(dynamic.prompts), dynamic.encode_classes())
        asked = learner(DyLoRA, rank=4, alpha=2.0, sites=["q", "fc1"], test_rank=rank)
        asked.load_state_dict(dynamic.state_dict())
        assert torch.equal(logits(asked), seen[-1])
    assert not any(close(a, b, 1e-3) for a, b in pairwise(seen))
    for rank in (0, 5):
        with pytest.raises(UserError, match=f"method.test_rank is {rank}, allowed is 1 to method.rank=4"):
            dynamic.use_rank(rank)


def test_all_ranks_are_trained_in_turn():
    dynamic, drawn = scatter(learner(DyLoRA, rank=4, min_rank=2, sites=["q"], test_rank=3, towers="image")), set()
    for _ in range(12):
        a = gradients(dynamic)["layers.image.0.q.a"]
        rows = a.any(1)
        rank = int(rows.sum())
        assert rows.tolist() == [True] * rank + [False] * (4 - rank)
        drawn.add(rank)
    assert drawn == {2, 3, 4}
    logits(dynamic)
    assert {update.active for update in dynamic.updates()} == {3}


def test_frozen_trains_the_last_rank_alone_and_computes_the_same():
    plain, frozen = (scatter(learner(DyLoRA, rank=4, min_rank=4, frozen=f)) for f in (False, True))
    ours, theirs = gradients(frozen), gradients(plain)
    for name, g in ours.items():
        last, others = (g[3], g[:3]) if name.endswith(".a") else (g[:, 3], g[:, :3])
        assert not others.any()
        assert close(last, theirs[name][3] if name.endswith(".a") else theirs[name][:, 3])
    assert close(logits(frozen), logits(plain))


# --- PEFT


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (LoRA, {"sites": ["q", "k", "v", "o", "fc1", "fc2"], "rank": 3, "alpha": 2.0}),
        (LoRA, {"sites": ["q", "v"], "rank": 4, "scaling": "alpha/sqrt(r)", "towers": "image", "dropout": 0.5}),
        (DyLoRA, {"sites": ["v", "fc1"], "rank": 4, "test_rank": 2, "towers": "text"}),
    ],
    ids=["all sites", "image", "nested"],
)
@pytest.mark.filterwarnings("ignore")
def test_peft_reads_what_is_exported(kind, settings, tmp_path):
    peft = pytest.importorskip("peft")
    pytest.importorskip("transformers")
    lora = scatter(learner(kind, **settings)).eval()
    write_peft(lora, tmp_path)
    model = peft.PeftModel.from_pretrained(tiny.in_transformers(CLIP), tmp_path).double().eval()
    in_peft = {name for name in model.state_dict() if "lora_" in name}
    in_file = safetensors.torch.load_file(tmp_path / "adapter_model.safetensors")
    assert {name.replace(".default.weight", ".weight") for name in in_peft} == set(in_file)
    ids = CLIP.text.tokenize([f"a photo of a {name.replace('_', ' ')}." for name in CLASSES])
    with torch.no_grad():
        theirs = model(input_ids=ids, pixel_values=IMAGES.pixels)
        images, classes = lora.encode_images(IMAGES), lora.encode_classes()
    assert close(theirs.image_embeds, F.normalize(images, dim=-1), 1e-6)  # tensors are stored as they are; PEFT in fp32
    assert close(theirs.text_embeds, F.normalize(classes, dim=-1), 1e-6)
    frozen = F.normalize(CLIP.image(IMAGES), dim=-1), F.normalize(CLIP.text(lora.prompts), dim=-1)
    moved = [not close(a, b, 1e-2) for a, b in zip((theirs.image_embeds, theirs.text_embeds), frozen, strict=True)]
    assert moved == ["image" in lora.towers, "text" in lora.towers]


def test_a_model_that_peft_has_no_names_for_is_refused(tmp_path):
    clip, _ = tiny.clip("timm", torch.float32)
    with pytest.raises(UserError, match=r"no counterpart in transformers\.CLIPModel"):
        write_peft(LoRA(clip, CLASSES), tmp_path)


def test_an_adapter_on_a_full_disk_is_not_half_written(tmp_path, monkeypatch):
    write_peft(LoRA(CLIP, CLASSES, rank=1), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*args, **keywords):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match="no space left"):
        write_peft(LoRA(CLIP, CLASSES, rank=2), tmp_path, force=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
