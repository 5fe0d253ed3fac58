"""Towers that leave out what nothing reads, against plain ones that compute it all, in fp64: logits and gradients.

The plain text tower runs every class of every image alone, padded to 77 tokens; the plain image tower appends prompts
to the patches and runs all rows through all layers. Both go through the library's own blocks, and through the textbook
where a block is edited.
"""

import re
from functools import cache
from pathlib import Path

import pytest
import tiny
import torch
import torch.nn.functional as F
from test_learners import CASES, LABELS, METHODS, SMALL, Case, configured, scatter
from test_learners import CLASSES as THREE
from test_towers import Low, check_gradients, leaf, low_rank, sequences
from torch import nn

from vlprompt.config.locate import locate
from vlprompt.learners.base import Learner
from vlprompt.towers import NO_EDITS, Edit, Images, ImageTower, Prefix, TextTower
from vlprompt.towers.edits import NONE

NAMES = ["cat", "golden retriever", "St. Bernard's dog", "a " + "very " * 30 + "long name", "tabby", "hot air balloon"]
WIDTH, HEADS, DEPTH = 32, 2, 3  # of the text tower


@cache
def world():
    return tiny.clip("vit")


# --- the plain towers


def plain_block(block, x, mask, edit):
    """[N, L, d] -> [N, L, d]: the library's own block, or the textbook's if something of it is edited."""
    if edit == NONE:
        return block(x, attn_mask=mask)

    def plus(y, site, u):
        delta = getattr(edit, site)
        return y if delta is None else y + delta(u)

    u = block.ln_1(x)
    skip = plus(torch.zeros_like(x), "skip", u)
    q, k, v = F.linear(u, block.attn.in_proj_weight, block.attn.in_proj_bias).chunk(3, -1)
    a = plain_attention(block.attn, plus(q, "q", u), plus(k, "k", u), plus(v, "v", u), mask, edit.prefix)
    h = plus(block.attn.out_proj(a), "o", a)
    x = x + (h if edit.attn is None else edit.attn(h, x))
    u = block.ln_2(x)
    a = block.mlp.gelu(plus(block.mlp.c_fc(u), "fc1", u))
    h = plus(block.mlp.c_proj(a), "fc2", a)
    return x + (h if edit.mlp is None else edit.mlp(h, x)) + skip


def plain_attention(attn, q, k, v, mask, prefix):
    heads = [t.chunk(attn.num_heads, -1) for t in (q, k, v)]
    heads_out = []
    for i, (q_i, k_i, v_i) in enumerate(zip(*heads, strict=True)):
        scale = q_i.shape[-1] ** -0.5
        scores = q_i @ k_i.mT * scale + (0 if mask is None else mask)
        if prefix is None:
            heads_out.append(scores.softmax(-1) @ v_i)
            continue
        if prefix.tokens is not None:
            _, key, value = F.linear(prefix.tokens, attn.in_proj_weight, attn.in_proj_bias).chunk(3, -1)
            key, value = (t.chunk(attn.num_heads, -1)[i] for t in (key, value))
        else:
            key, value = prefix.key[i], prefix.value[i]
        to_prefix = q_i @ key.T * scale
        if prefix.gate is None:
            p = torch.cat([to_prefix, scores], -1).softmax(-1)
            heads_out.append(p[..., : len(key)] @ value + p[..., len(key) :] @ v_i)
        else:
            heads_out.append(scores.softmax(-1) @ v_i + prefix.gate[i] * (to_prefix.softmax(-1) @ value))
    return torch.cat(heads_out, -1)


def plain_text(tokens, eot, edits, image=0, *, slot=True):
    """Features [C, e] of whole sequences [C, L, d]; `image`: whose deep prompts, where each image has its own.

    Without a `slot` the first deep prompts come between the start token and the rest; others are written over tokens.
    """
    _, model = world()
    x = F.pad(tokens, (0, 0, 0, 77 - tokens.shape[1])) + model.positional_embedding
    for layer, block in enumerate(model.transformer.resblocks):
        edit = edits.get(layer, NONE)
        if edit.tokens is not None:
            many = edit.tokens.ndim > 2  # of each image
            written = edit.tokens[image % len(edit.tokens)] if many else edit.tokens
            n = written.shape[-2]
            written = written.expand(len(x), -1, -1)
            if edit.share is not None and slot:
                written = edit.share * written + (1 - edit.share) * x[:, 1 : 1 + n]
            x = torch.cat([x[:, :1], written, x[:, 1 + n * slot :]], 1)
            eot, slot = eot + n * (not slot), True
            edit = without_tokens(edit)
        mask = torch.full((x.shape[1], x.shape[1]), -torch.inf, dtype=x.dtype).triu(1)
        x = plain_block(block, x, mask, edit)
    return model.ln_final(x)[torch.arange(len(x)), eot] @ model.text_projection


def run_plain_text(tower, prompts, edits=NO_EDITS):
    """In place of `TextTower.__call__`."""
    shared, eot = prompts.shared, prompts.eot + prompts.shared.shape[-2]
    slot, n_classes = prompts.slot > 0, len(prompts.suffix)
    features = [
        plain_text(torch.cat([s.expand(n_classes, -1, -1), prompts.suffix], 1), eot, edits, image, slot=slot)
        for image, s in enumerate(shared if shared.ndim == 3 else shared[None])
    ]
    return torch.stack(features) if shared.ndim == 3 else features[0]


def run_plain_image(tower, images, edits=NO_EDITS):
    """In place of `ImageTower.__call__`."""
    visual = world()[1].visual
    x = visual.conv1(images.pixels).flatten(2).mT
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], 1) + visual.positional_embedding
    n_patches = x.shape[1]
    for layer, block in enumerate(visual.transformer.resblocks):
        edit = edits.get(layer, NONE)
        if edit.tokens is not None:
            x = torch.cat([x[:, :n_patches], edit.tokens.expand(len(x), -1, -1)], 1)
        x = plain_block(block, visual.ln_pre(x) if layer == 0 else x, None, without_tokens(edit))
    return visual.ln_post(x[:, 0]) @ visual.proj


def without_tokens(edit):
    return Edit(**{site: value for site, value in vars(edit).items() if site not in ("tokens", "share")})


# --- each layout with each edit, in all layers


def make_edits(kind):
    """Edits of every layer of the text tower, and the tensors that they learn."""
    if kind == "none":
        return {}, []
    learned, edits = [], {}
    for layer in range(DEPTH):
        seed = 10 * layer
        if kind == "deep":
            parts = [leaf(3, WIDTH, seed=seed)]
            edits |= {layer: Edit(tokens=parts[0])} if layer else {}
            parts = parts if layer else []
        elif "prefix" in kind:
            parts = [leaf(HEADS, 4, WIDTH // HEADS, seed=seed), leaf(HEADS, 4, WIDTH // HEADS, seed=seed + 1)]
            parts += [leaf(HEADS, seed=seed + 2)] if kind == "gated prefix" else []
            edits[layer] = Edit(prefix=Prefix(**dict(zip(("key", "value", "gate"), parts, strict=False))))
        elif kind == "deltas":
            shapes = {"q": (32, 32), "k": (32, 32), "v": (32, 32), "o": (32, 32), "fc1": (32, 128), "fc2": (128, 32),
                      "skip": (32, 32)}  # fmt: skip
            pairs = {site: low_rank(*shape, seed=seed + i) for i, (site, shape) in enumerate(shapes.items())}
            edits[layer] = Edit(**{site: Low(*pair) for site, pair in pairs.items()})
            parts = [t for pair in pairs.values() for t in pair]
        else:
            a, b = parts = [leaf(WIDTH, WIDTH, seed=seed), leaf(WIDTH, WIDTH, seed=seed + 1)]
            branch = Bent(a, b)
            edits[layer] = Edit(attn=branch, mlp=branch)
        learned += parts
    return edits, learned


class Bent(nn.Module):
    def __init__(self, a, b):
        super().__init__()
        self.a, self.b = a, b

    def forward(self, h, x):
        return h + torch.tanh(h @ self.a) + torch.tanh(x @ self.b)


EDITS = ["none", "deep", "prefix", "gated prefix", "deltas", "adapters"]
LAYOUTS = ["end", "middle", "front", "end, class-specific", "middle, class-specific", "front, class-specific"]


@pytest.mark.parametrize("kind", EDITS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_text_layouts(layout, kind):
    clip, _ = world()
    position, _, specific = layout.partition(", ")
    context = leaf(*([len(NAMES)] if specific else []), 5, WIDTH)
    prompts = clip.text.prompts(NAMES, n_context=5)
    prompts = prompts.with_class_context(context, position) if specific else prompts.with_context(context, position)
    edits, learned = make_edits(kind)
    if kind == "deep" and layout != "end":
        pytest.skip("deep prompts are written over a context that all classes share")
    tokens, eot = sequences(clip, context, position, NAMES)
    check_gradients(clip.text(prompts, edits), plain_text(tokens, eot, edits), [context, *learned])


@pytest.mark.parametrize("kind", ["none", "deep", "deltas"])
def test_contexts_of_each_image(kind):
    clip, _ = world()
    context = leaf(2, 5, WIDTH)
    edits, learned = make_edits(kind)
    if kind == "deep":  # those of layer 2 differ between the images, too
        learned[1] = leaf(2, 3, WIDTH, seed=5)
        edits[2] = Edit(tokens=learned[1])
    prompts = clip.text.prompts(NAMES, n_context=5).with_context(context)
    plain = [plain_text(*sequences(clip, c, "end", NAMES), edits, image) for image, c in enumerate(context)]
    check_gradients(clip.text(prompts, edits), torch.stack(plain), [context, *learned])


def test_learned_words_leave_fixed_ones():
    """Two learned tokens for "a photo"; "of a" is common to all classes, too."""
    clip, _ = world()
    context = leaf(2, WIDTH)
    edits, learned = make_edits("deep")
    prompts = clip.text.prompts(NAMES, template="a photo of a {}.").with_context(context)
    assert prompts.shared.shape[0] == 5
    edits = {layer: Edit(tokens=edit.tokens[:2]) for layer, edit in edits.items()}
    ids = clip.text.tokenize([f"a photo of a {name}." for name in NAMES])
    tokens = clip.text.embed(ids)
    tokens = torch.cat([tokens[:, :1], context.expand(len(NAMES), -1, -1), tokens[:, 3:]], 1)
    check_gradients(clip.text(prompts, edits), plain_text(tokens, ids.argmax(-1), edits), [context, *learned])


@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_names_that_fill_the_tower(position):
    clip, _ = world()
    names, context = ["cat " * 69, "dog", "cat " * 68, "dog"], leaf(5, WIDTH)
    prompts = clip.text.prompts(names, n_context=5).with_context(context, position)
    assert prompts.shared.shape[0] + prompts.suffix.shape[1] == 77
    check_gradients(clip.text(prompts), plain_text(*sequences(clip, context, position, names), {}), [context])


@pytest.mark.parametrize("names", [["cat"], ["cat", "cat"], ["striped red star", "striped red heart"]])
def test_few_names(names):
    clip, _ = world()
    context = leaf(5, WIDTH)
    prompts = clip.text.prompts(names, n_context=5).with_context(context)
    check_gradients(clip.text(prompts), plain_text(*sequences(clip, context, "end", names), {}), [context])


@pytest.mark.parametrize("images", [0, 2])
@pytest.mark.parametrize("kind", ["deep", "deltas"])
def test_classes_in_chunks(kind, images):
    """Some classes at a time: all activations but theirs are computed again, and nothing else changes."""
    clip, _ = world()
    context = leaf(*([images] if images else []), 5, WIDTH)
    prompts = clip.text.prompts(NAMES, n_context=5).with_context(context)
    edits, learned = make_edits(kind)
    chunked = clip.with_text_chunk(2)
    assert chunked.with_weights({}).text.chunk == 2
    check_gradients(chunked.text(prompts, edits), clip.text(prompts, edits), [context, *learned])
    saved = [count_saved(lambda t=tower: t(prompts, edits)) for tower in (clip.text, chunked.text)]
    assert saved[1] < saved[0] / 4


def count_saved(run):
    """Numbers kept for backward."""
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        run()
    return sum(sizes)


@pytest.mark.parametrize("kind", ["vit", "siglip"])
def test_long_lists_without_gradients(kind, monkeypatch):
    clip, _ = tiny.clip(kind)
    names = [name for name in NAMES if len(name) < 30] * 3
    prompts = clip.text.prompts(names)
    rows = []
    clip.text.blocks[0].norm1.register_forward_pre_hook(lambda module, args: rows.append(args[0][..., 0].numel()))
    with torch.no_grad():
        whole = clip.text(prompts)
        monkeypatch.setattr("vlprompt.towers.text.ROWS_AT_ONCE", 32)
        parts = clip.text(prompts)
    assert ((parts - whole).norm() / whole.norm()).item() < 1e-12
    assert len(rows) > 3
    assert max(rows[1:]) <= 32 + prompts.suffix.shape[1] + prompts.shared.shape[0] < rows[0]


# --- image prompts


@pytest.mark.parametrize("layers", [(0,), (0, 1, 2), (1, 2), (2,), (0, 2)])
@pytest.mark.parametrize("kind", ["tokens", "of each image", "and a delta", "and a prefix"])
def test_image_prompts(layers, kind):
    """Prompts that the next layer overwrites, and those that stay; the last layer for the class token only."""
    clip, model = world()
    images = Images(tiny.pixels(model))
    tokens = [leaf(*([2] if kind == "of each image" else []), 2 + layer, 48, seed=layer) for layer in layers]
    more, pair = {}, ()
    if kind == "and a delta":
        pair = low_rank(48, 48, 9)
        more = {"v": Low(*pair)}
    elif kind == "and a prefix":
        pair = (leaf(3, 4, 16, seed=20), leaf(3, 4, 16, seed=21))
        more = {"prefix": Prefix(key=pair[0], value=pair[1])}
    edits = {layer: Edit(tokens=t, **more) for layer, t in zip(layers, tokens, strict=True)}
    check_gradients(clip.image(images, edits), run_plain_image(clip.image, images, edits), [*tokens, *pair])


def test_image_rows_that_are_computed():
    """Prompts to be overwritten are keys and values, once for all images; of the last layer the class token is left."""
    clip, model = tiny.clip("vit")
    read, asked = [], []
    for block in model.visual.transformer.resblocks:
        block.ln_1.register_forward_pre_hook(lambda module, args: read.append(tuple(args[0].shape[:-1])))
        block.attn.out_proj.register_forward_pre_hook(lambda module, args: asked.append(tuple(args[0].shape[:-1])))
    prompts = {layer: Edit(tokens=leaf(5, 48, seed=layer)) for layer in range(3)}
    clip.image(Images(tiny.pixels(model, 4)), prompts)
    assert read == [(5,), (4, 17)] * 3
    assert asked == [(4, 17), (4, 17), (4, 1)]
    read.clear()
    clip.image(Images(tiny.pixels(model, 4)), {0: prompts[0]})  # these stay
    assert read == [(4, 22)] * 3


# --- each method


def build(case):
    """The case's learner in fp64, with all that it learns drawn anew."""
    kind, arguments = locate(configured(case.method)["method"], Learner, "method")
    clip, model = world()
    images = Images(tiny.pixels(model, len(LABELS)))
    torch.manual_seed(0)
    learner = kind(clip, THREE, **{**arguments, **case.settings}).double()
    learner.prepare([(images, LABELS)], [(images, LABELS)])
    return scatter(learner).eval(), images


def run(case):
    """Logits and all gradients."""
    learner, images = build(case)
    with torch.no_grad():
        logits = learner(images, learner.encode_classes())
    loss, _ = learner.backward(images, LABELS) if list(learner.parameters()) else learner.loss(images, LABELS)
    return logits, loss, {name: p.grad for name, p in learner.named_parameters()}


OTHER_WEIGHTS = ("bitfit", "flyp", "full_finetune", "intrinsic_dimension", "ln_tuning", "prolip", "qlora", "two_stage")
"""Their towers read other tensors than the plain ones here; tests/test_weight_methods.py has oracles of their own."""


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.model == "vit" and c.method not in OTHER_WEIGHTS], ids=lambda case: case.name
)
def test_methods(case, monkeypatch):
    logits, loss, gradients = run(case)
    monkeypatch.setattr(TextTower, "__call__", run_plain_text)
    monkeypatch.setattr(ImageTower, "__call__", run_plain_image)
    plain_logits, plain_loss, plain_gradients = run(case)
    assert logits.dtype == torch.float64
    torch.testing.assert_close(logits, plain_logits, rtol=0, atol=1e-12 * plain_logits.abs().max().item())
    torch.testing.assert_close(loss, plain_loss, rtol=1e-12, atol=0)
    assert [name for name, p in gradients.items() if p is None] == [n for n, p in plain_gradients.items() if p is None]
    for name, plain in ((name, p) for name, p in plain_gradients.items() if p is not None):  # None: of a later stage
        torch.testing.assert_close(gradients[name], plain, rtol=0, atol=1e-12 * plain.abs().max().item(), msg=name)


# --- where sharing stays on


def documented():
    """docs/speed.md's table: method -> what its classes share while it is trained."""
    lines = (Path(__file__).parents[1] / "docs" / "speed.md").read_text(encoding="utf-8").splitlines()
    rows = (re.fullmatch(r"\| ((?:`\w+`(?:, )?)+) \| (.+?) \|.*", line) for line in lines)
    return {name: row[2] for row in rows if row for name in re.findall(r"`(\w+)`", row[1])}


@pytest.mark.parametrize("method", METHODS)
def test_sharing_is_as_documented(method, monkeypatch):
    """What runs through the text tower in two training steps: class prompts with a shared part, or whole ones."""
    learner, images = build(Case(method, SMALL.get(method, {})))
    seen = []
    packed, whole = TextTower._run_packed, TextTower._run_whole
    monkeypatch.setattr(
        TextTower,
        "_run_packed",
        lambda tower, p, edits: seen.append(f"{p.shared.shape[-2]} tokens") or packed(tower, p, edits),
    )
    monkeypatch.setattr(
        TextTower, "_run_whole", lambda tower, p, edits: seen.append("nothing") or whole(tower, p, edits)
    )
    learner.train()
    learner.bind(list(reversed(THREE)), rows=[2, 1, 0])
    learner.loss(images, LABELS)
    first = " and ".join(sorted(set(seen)))
    seen.clear()
    learner.loss(images, LABELS)
    sharing = f"{first}; computed once" if first and not seen else first or "no text"
    assert documented().get(method) == sharing, f"docs/speed.md has to say of {method}: {sharing}"
