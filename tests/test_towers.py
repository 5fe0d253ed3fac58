"""The towers against open_clip's own forward passes, and each edit site against an independent oracle, in fp64."""

from dataclasses import FrozenInstanceError, replace

import open_clip
import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import nn

from vlprompt.errors import UserError
from vlprompt.towers import Edit, Images, NeedsPixels, Prefix, Preprocess, TextTower, merge
from vlprompt.towers.image import write
from vlprompt.towers.loading import clip_of, make_model

CLASSES = ["cat", "golden_retriever", "St. Bernard's dog", "hot air balloon"]
TEMPLATE = "a photo of a {}, in colour."


def close(a, b, bound=1e-12):
    assert a.shape == b.shape
    assert ((a - b).norm() / b.norm()).item() < bound


def check_gradients(ours, theirs, inputs, bound=1e-12):
    """Values, and gradients of a random projection of them."""
    close(ours, theirs, bound)
    weights = torch.randn(ours.shape, generator=torch.Generator().manual_seed(3)).to(ours)
    for a, b in zip(
        torch.autograd.grad((ours * weights).sum(), inputs),
        torch.autograd.grad((theirs * weights).sum(), inputs),
        strict=True,
    ):
        assert b.norm() > 0
        close(a, b, bound)


def leaf(*shape, seed=7, scale=0.3):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).requires_grad_()


@pytest.mark.parametrize("kind", tiny.CONFIGS)
def test_unedited_towers_equal_open_clip(kind):
    clip, model = tiny.clip(kind)
    x = tiny.pixels(model).requires_grad_()
    check_gradients(clip.image(Images(x)), model.encode_image(x), [x])
    assert clip.image.embed_dim == clip.image(Images(x)).shape[1]
    prompts = clip.text.prompts(CLASSES, template=TEMPLATE)
    ids = clip.text.tokenize([TEMPLATE.replace("{}", name.replace("_", " ")) for name in CLASSES])
    close(clip.text(prompts), model.encode_text(ids))
    assert clip.text.embed_dim == clip.text(prompts).shape[1]
    assert abs(clip.scale - model.logit_scale.exp().item()) < 1e-12


def test_banked_features_replace_the_unedited_tower_only():
    clip, _ = tiny.clip()
    features = torch.randn(2, 24)
    assert clip.image(Images(features=features)) is features
    with pytest.raises(NeedsPixels):
        clip.image(Images(features=features), {0: Edit(tokens=torch.zeros(1, 48))})


@pytest.mark.parametrize("kind", ["vit", "vit_avg", "timm"])
def test_tokens_and_their_projection_are_the_call(kind):
    clip, model = tiny.clip(kind)
    images, tower = Images(tiny.pixels(model)), clip.image
    edits = {layer: Edit(tokens=leaf(2, tower.width, seed=layer)) for layer in range(tower.depth)}
    table = tower.tokens(images, edits)
    assert table.shape[1] == tower.tokens(images).shape[1] + 2
    close(tower.project(table, 2), tower(images, edits))
    at = tower.n_prefix_tokens
    nothing = {"attn": lambda h, x: h * 0, "mlp": lambda h, x: h * 0}
    zeroed = {**edits, tower.depth - 1: Edit(tokens=torch.zeros(2, tower.width), **nothing)}
    assert not tower.tokens(images, zeroed)[:, at : at + 2].any()
    if tower.projection is not None:
        close(tower.norm_out(table[:, 0]) @ tower.projection, tower(images, edits))


def test_towers_are_immutable_and_built_once():
    clip, _ = tiny.clip()
    with pytest.raises(FrozenInstanceError):
        clip.image.frozen = False
    chunked, moved = clip.with_text_chunk(2), clip.to("cpu")
    merged = clip.with_weights({"ln_final.bias": torch.ones(32)})
    assert chunked.image is moved.image is merged.image is clip.image
    assert merged.text is not clip.text
    assert not clip.with_weights({"visual.ln_post.bias": torch.ones(48)}).with_text_chunk(2).to("cpu").image.frozen


def test_resnet_takes_no_edits():
    clip, model = tiny.clip("resnet")
    with pytest.raises(UserError, match="choose a backbone with a ViT"):
        clip.image(Images(tiny.pixels(model)), {0: Edit(tokens=torch.zeros(1, 48))})


def test_edits_are_checked():
    clip, model = tiny.clip()
    with pytest.raises(TypeError):
        Edit(share=0.5)
    with pytest.raises(TypeError):
        Edit(token=torch.zeros(1, 48))
    with pytest.raises(UserError, match="3 blocks"):
        clip.image(Images(tiny.pixels(model)), {3: Edit(tokens=torch.zeros(1, 48))})
    with pytest.raises(UserError, match="width 32, this tower needs 48"):
        clip.image(Images(tiny.pixels(model)), {0: Edit(tokens=torch.zeros(1, 32))})
    with pytest.raises(UserError, match=r"Prompts\.with_context"):
        clip.text(clip.text.prompts(CLASSES), {0: Edit(tokens=torch.zeros(1, 32))})
    with pytest.raises(TypeError):
        Prefix(key=torch.zeros(1, 1, 1))


def test_merge_joins_and_refuses_a_clash():
    tokens, delta = Edit(tokens=torch.zeros(1, 48)), Edit(q=nn.Identity())
    both = merge({0: tokens, 1: tokens}, {0: delta})
    assert both[0].tokens is tokens.tokens
    assert both[0].q is delta.q
    assert both[1] is tokens
    with pytest.raises(UserError, match="tokens of layer 1"):
        merge({1: tokens}, {1: tokens})


# --- image prompts, against hooks on the library's own blocks


def hooked_image_prompts(model, x, prompts):
    """Prompts at the end of the sequence, written by pre-hooks; layer 0 before ln_pre."""
    width, handles = {"n": 0}, []

    def append(tokens):
        def hook(module, args):
            y = args[0]
            y = y[:, : y.shape[1] - width["n"]]
            width["n"] = tokens.shape[0]
            return (torch.cat([y, tokens.expand(len(y), -1, -1)], 1), *args[1:])

        return hook

    for layer, tokens in prompts.items():
        module = model.visual.ln_pre if layer == 0 else model.visual.transformer.resblocks[layer]
        handles.append(module.register_forward_pre_hook(append(tokens)))
    try:
        return model.encode_image(x)
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("layers", [(0,), (0, 1, 2), (1, 2)], ids=["shallow", "deep", "late"])
def test_image_prompts(layers):
    clip, model = tiny.clip()
    x = tiny.pixels(model)
    prompts = {layer: leaf(2, 48, seed=layer) for layer in layers}
    ours = clip.image(Images(x), {layer: Edit(tokens=t) for layer, t in prompts.items()})
    check_gradients(ours, hooked_image_prompts(model, x, prompts), list(prompts.values()))


def test_prompts_per_image_equal_one_by_one():
    clip, model = tiny.clip()
    x, tokens = tiny.pixels(model), leaf(2, 3, 48)
    both = clip.image(Images(x), {1: Edit(tokens=tokens)})
    single = [clip.image(Images(x[i : i + 1]), {1: Edit(tokens=tokens[i])}) for i in range(2)]
    close(both, torch.cat(single))


def test_the_slot_is_overwritten_and_may_change_its_width():
    x = torch.arange(5.0)[None, :, None].expand(1, 5, 2)
    y, width = write(x, torch.full((2, 2), 9.0), 1, 0)
    assert y[0, :, 0].tolist() == [0, 9, 9, 1, 2, 3, 4]
    y, width = write(y, torch.full((1, 2), 8.0), 1, width)
    assert y[0, :, 0].tolist() == [0, 8, 1, 2, 3, 4]
    assert width == 1


def test_a_share_leaves_the_rest_of_the_slot():
    x = torch.arange(5.0)[None, :, None].expand(1, 5, 2)
    y, width = write(x, torch.full((2, 2), 8.0), 1, 0, 0.25)  # an empty slot takes all
    assert y[0, :, 0].tolist() == [0, 8, 8, 1, 2, 3, 4]
    y, width = write(y, torch.full((2, 2), 4.0), 1, width, 0.25)
    assert y[0, :, 0].tolist() == [0, 7, 7, 1, 2, 3, 4]
    with pytest.raises(UserError, match="1 tokens with a share"):
        write(y, torch.full((1, 2), 8.0), 1, width, 0.25)


@pytest.mark.parametrize("tower", ["image", "text"])
def test_tokens_that_are_written_in_part(tower):
    """Nothing, half and all of the tokens: as if not written, as the mean by hooks, as if written."""
    clip, model = tiny.clip()
    first, then = (leaf(2, 48 if tower == "image" else 32, seed=seed) for seed in (1, 2))
    x = Images(tiny.pixels(model)) if tower == "image" else clip.text.prompts(CLASSES)
    run = getattr(clip, tower)

    def mixed(share):
        return run(x, {1: Edit(tokens=first), 2: Edit(tokens=then, share=share)})

    close(mixed(0.0), run(x, {1: Edit(tokens=first)}))
    close(mixed(1.0), run(x, {1: Edit(tokens=first), 2: Edit(tokens=then)}))
    block = (model.visual.transformer if tower == "image" else model.transformer).resblocks[2]

    def half(module, args):
        return (torch.cat([args[0][:, :1], (args[0][:, 1:3] + then) / 2, args[0][:, 3:]], 1), *args[1:])

    def open_(module, args):
        y = args[0]
        return (torch.cat([y[:, :1], first.expand(len(y), -1, -1), y[:, 1:]], 1), *args[1:])

    if tower == "image":
        blocks = model.visual.transformer.resblocks
        handles = [blocks[1].register_forward_pre_hook(open_), block.register_forward_pre_hook(half)]
        check_gradients(mixed(0.5), model.encode_image(x.pixels), [first, then])
        for handle in handles:
            handle.remove()


def test_prompts_are_dropped_before_average_pooling():
    """With attention to the prompts cut off, they change nothing, though the pooling averages over all tokens."""
    clip, model = tiny.clip("vit_avg")
    x = tiny.pixels(model)
    plain = clip.image(Images(x))
    edited = clip.image(Images(x), {2: Edit(tokens=torch.zeros(2, 48, dtype=x.dtype), attn=lambda h, y: h * 0)})
    without = clip.image(Images(x), {2: Edit(attn=lambda h, y: h * 0)})
    close(edited, without)
    assert not torch.allclose(plain, without)


# --- maps: against the same model with merged weights


class Low(nn.Module):
    def __init__(self, a, b):
        super().__init__()
        self.a, self.b = a, b

    def forward(self, x):
        return x @ self.a @ self.b


def low_rank(width_in, width_out, seed):
    return leaf(width_in, 2, seed=seed), leaf(2, width_out, seed=seed + 100)


@pytest.mark.parametrize("tower", ["image", "text"])
@pytest.mark.parametrize("site", ["q", "k", "v", "o", "fc1", "fc2"])
@pytest.mark.parametrize("kind", ["vit", "timm"])
def test_deltas_equal_merged_weights(kind, tower, site):
    if (kind, tower) == ("timm", "text"):
        pytest.skip("same text tower as vit")
    clip, model = tiny.clip(kind)
    d = clip.image.width if tower == "image" else clip.text.width
    block = model.visual.trunk.blocks[1] if kind == "timm" else None
    hidden = block.mlp.fc1.out_features if block is not None else 4 * d
    a, b = low_rank(*{"fc1": (d, hidden), "fc2": (hidden, d)}.get(site, (d, d)), seed=11)
    edits = {1: Edit(**{site: Low(a, b)})}
    at = {"vit": "transformer.resblocks.1.", "timm": "trunk.blocks.1."}[kind if tower == "image" else "vit"]
    at = ("visual." if tower == "image" else "") + at
    native = not (kind == "timm" and tower == "image")
    names = (
        {"o": "attn.out_proj.weight", "fc1": "mlp.c_fc.weight", "fc2": "mlp.c_proj.weight"}
        if native
        else {"o": "attn.proj.weight", "fc1": "mlp.fc1.weight", "fc2": "mlp.fc2.weight"}
    )
    name = at + names.get(site, "attn.in_proj_weight" if native else "attn.qkv.weight")
    delta = (a @ b).T
    if site in "qkv":
        zeros = torch.zeros_like(delta)
        delta = torch.cat([delta if s == site else zeros for s in "qkv"])
    merged = clip.with_weights({name: model.state_dict()[name] + delta})
    if tower == "image":
        x = Images(tiny.pixels(model))
        ours, oracle = clip.image(x, edits), merged.image(x)
    else:
        prompts = clip.text.prompts(CLASSES)
        ours, oracle = clip.text(prompts, edits), merged.text(prompts)
    check_gradients(ours, oracle, [a, b])


def test_with_weights_equals_a_model_that_has_them():
    clip, model = tiny.clip()
    changed = {k: v + 0.05 * torch.randn_like(v) for k, v in model.state_dict().items() if k != "logit_scale"}
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x, prompts = tiny.pixels(model), clip.text.prompts(CLASSES)
    other = clip.with_weights(changed)
    image, text = other.image(Images(x)), other.text(other.text.prompts(CLASSES))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    close(clip.text(prompts), tiny.clip()[0].text(prompts))
    model.load_state_dict({**before, **changed})
    close(image, model.encode_image(x))
    ids = clip.text.tokenize([c.replace("_", " ") + "." for c in CLASSES])
    close(text, model.encode_text(ids))
    with pytest.raises(UserError, match="unknown weight"):
        clip.with_weights({"visual.nothing": torch.zeros(1)})
    with pytest.raises(UserError, match=r"is \[48, 24\] in the model, got \[1\]"):
        clip.with_weights({"visual.proj": torch.zeros(1)})


# --- prefixes: against attention written out


def written_out(block, x, mask, prefix_k, prefix_v, gate=None):
    """One block by the textbook, prefix keys in front; `gate`: a softmax of their own."""
    a, heads = block.attn, block.attn.num_heads
    u = block.ln_1(x)
    q, k, v = (u @ a.in_proj_weight.T + a.in_proj_bias).chunk(3, -1)
    out = []
    for h in range(heads):
        c = slice(h * q.shape[-1] // heads, (h + 1) * q.shape[-1] // heads)
        scale = (q.shape[-1] / heads) ** -0.5
        scores = q[..., c] @ k[..., c].mT * scale
        if mask is not None:
            scores = scores + mask
        pre = q[..., c] @ prefix_k[h].T * scale
        if gate is None:
            p = torch.softmax(torch.cat([pre, scores], -1), -1)
            n = pre.shape[-1]
            out.append(p[..., :n] @ prefix_v[h] + p[..., n:] @ v[..., c])
        else:
            out.append(torch.softmax(scores, -1) @ v[..., c] + gate[h] * (torch.softmax(pre, -1) @ prefix_v[h]))
    x = x + block.ls_1(a.out_proj(torch.cat(out, -1)))
    return x + block.ls_2(block.mlp(block.ln_2(x)))


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("tower", ["image", "text"])
def test_prefixes(tower, gated):
    clip, model = tiny.clip()
    heads, width = (clip.image.heads, 48) if tower == "image" else (clip.text.heads, 32)
    key, value = leaf(heads, 4, width // heads, seed=1), leaf(heads, 4, width // heads, seed=2)
    gate = leaf(heads, seed=3) if gated else None
    edits = {1: Edit(prefix=Prefix(key=key, value=value, gate=gate))}
    visual = tower == "image"
    block = (model.visual.transformer if visual else model.transformer).resblocks[1]
    block.forward = lambda x, attn_mask=None, **_: written_out(block, x, attn_mask, key, value, gate)
    if visual:
        x = tiny.pixels(model)
        ours, oracle = clip.image(Images(x), edits), model.encode_image(x)
    else:
        ours = clip.text(clip.text.prompts(CLASSES, template=TEMPLATE), edits)
        ids = clip.text.tokenize([TEMPLATE.replace("{}", name.replace("_", " ")) for name in CLASSES])
        oracle = model.encode_text(ids)
    check_gradients(ours, oracle, [key, value] + ([gate] if gated else []))


def test_prefix_tokens_go_through_the_frozen_projections():
    clip, model = tiny.clip()
    tokens = leaf(4, 48)
    attn = model.visual.transformer.resblocks[1].attn
    _, k, v = F.linear(tokens, attn.in_proj_weight, attn.in_proj_bias).chunk(3, -1)
    key, value = (t.view(4, 3, 16).transpose(0, 1) for t in (k, v))
    x = Images(tiny.pixels(model))
    ours = clip.image(x, {1: Edit(prefix=Prefix(tokens=tokens))})
    check_gradients(ours, clip.image(x, {1: Edit(prefix=Prefix(key=key, value=value))}), [tokens])


# --- branches: against hooks


@pytest.mark.parametrize("tower", ["image", "text"])
@pytest.mark.parametrize("site", ["attn", "mlp"])
def test_branches(tower, site):
    clip, model = tiny.clip()
    width = 48 if tower == "image" else 32
    a, b = leaf(width, width, seed=5), leaf(width, width, seed=6)
    edits = {1: Edit(**{site: lambda h, x: h + torch.tanh(h @ a) + torch.tanh(x @ b)})}
    block = (model.visual.transformer if tower == "image" else model.transformer).resblocks[1]
    seen = {}
    norm = block.ln_1 if site == "attn" else block.ln_2  # reads the residual stream that enters the branch
    norm.register_forward_pre_hook(lambda m, args: seen.update(x=args[0]))

    def branch(module, args, out):
        h = out[0] if site == "attn" else out
        y = h + torch.tanh(h @ a) + torch.tanh(seen["x"] @ b)
        return (y, None) if site == "attn" else y

    getattr(block, site).register_forward_hook(branch)
    if tower == "image":
        x = tiny.pixels(model)
        ours, oracle = clip.image(Images(x), edits), model.encode_image(x)
    else:
        ours = clip.text(clip.text.prompts(CLASSES), edits)
        oracle = model.encode_text(clip.text.tokenize([c.replace("_", " ") + "." for c in CLASSES]))
    check_gradients(ours, oracle, [a, b])


@pytest.mark.parametrize("tower", ["image", "text"])
@pytest.mark.parametrize("layer", [1, 2])  # of the last one only some rows are computed
def test_skips(tower, layer):
    """Next to the whole block: against a hook on the library's own."""
    clip, model = tiny.clip()
    a = leaf(48 if tower == "image" else 32, 48 if tower == "image" else 32, seed=5)
    edits = {layer: Edit(skip=lambda u: torch.tanh(u @ a))}
    block = (model.visual.transformer if tower == "image" else model.transformer).resblocks[layer]
    handle = block.register_forward_hook(lambda module, args, out: out + torch.tanh(module.ln_1(args[0]) @ a))
    if tower == "image":
        x = tiny.pixels(model)
        ours, oracle = clip.image(Images(x), edits), model.encode_image(x)
    else:
        ours = clip.text(clip.text.prompts(CLASSES), edits)
        oracle = model.encode_text(clip.text.tokenize([c.replace("_", " ") + "." for c in CLASSES]))
    handle.remove()
    check_gradients(ours, oracle, [a])


def test_a_skip_leaves_the_fused_mlp_in_use():
    clip, _ = tiny.clip()
    assert clip.image.blocks[1].fused is not None
    fused = replace(clip.image.blocks[1], fused=lambda x: 0 * x)
    x = leaf(2, 3, 48)
    torch.testing.assert_close(fused(x, Edit(skip=lambda u: u)), clip.image.blocks[1].norm1(x))


# --- text prompts


def whole_pass(model, tokens, eot, deep=()):
    """The library's own 77-token pass over embeddings; `deep`: (layer, prompts) written at positions 1..n."""
    padded = F.pad(tokens, (0, 0, 0, 77 - tokens.shape[1]))
    x = padded + model.positional_embedding
    handles = []
    for layer, prompts in deep:

        def hook(module, args, prompts=prompts):
            y, n = args[0], len(prompts)
            return (torch.cat([y[:, :1], prompts.expand(len(y), -1, -1), y[:, 1 + n :]], 1), *args[1:])

        handles.append(model.transformer.resblocks[layer].register_forward_pre_hook(hook))
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask))
    for handle in handles:
        handle.remove()
    return x[torch.arange(len(x)), eot] @ model.text_projection


def sequences(clip, context, position, names=CLASSES):
    """Prompts put together by hand, class after class: start, context around the name, rest."""
    rows, eots = [], []
    for i, name in enumerate(names):
        words = context[i] if context.ndim == 3 else context
        n = len(words)
        ids = clip.text.tokenize(["X " * n + name.replace("_", " ") + "."])[0]
        tokens = clip.text.embed(ids)
        length = clip.text.count(name.replace("_", " "))
        name_tokens, rest = tokens[1 + n : 1 + n + length], tokens[1 + n + length :]
        before = {"end": n, "middle": n // 2, "front": 0}[position]
        rows.append(torch.cat([tokens[:1], words[:before], name_tokens, words[before:], rest])[:77])
        eots.append(int(ids.argmax()))
    return torch.stack(rows), torch.tensor(eots)


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("specific", [False, True])
def test_contexts(position, specific):
    clip, model = tiny.clip()
    context = leaf(*([len(CLASSES)] if specific else []), 5, 32)
    prompts = clip.text.prompts(CLASSES, n_context=5)
    prompts = prompts.with_class_context(context, position) if specific else prompts.with_context(context, position)
    expected = {"end": 6, "middle": 3, "front": 1}[position]
    assert prompts.shared.shape[0] == (1 if specific else expected)
    check_gradients(clip.text(prompts), whole_pass(model, *sequences(clip, context, position)), [context])


def test_contexts_per_image_equal_one_by_one():
    clip, _ = tiny.clip()
    context = leaf(3, 4, 32)
    prompts = clip.text.prompts(CLASSES, n_context=4)
    at_once = clip.text(prompts.with_context(context))
    assert at_once.shape == (3, len(CLASSES), 24)
    alone = torch.stack([clip.text(prompts.with_context(c)) for c in context])
    check_gradients(at_once, alone, [context])


def test_deep_text_prompts_replace_and_leave_fixed_words():
    """Two learned tokens for "a photo"; "of a" stays, as in MaPLe."""
    clip, model = tiny.clip()
    context, deep = leaf(2, 32, seed=1), leaf(2, 32, seed=2)
    prompts = clip.text.prompts(CLASSES, template="a photo of a {}.").with_context(context)
    assert prompts.shared.shape[0] == 5
    ours = clip.text(prompts, {1: Edit(tokens=deep)})
    ids = clip.text.tokenize([f"a photo of a {c.replace('_', ' ')}." for c in CLASSES])
    tokens = clip.text.embed(ids)
    tokens = torch.cat([tokens[:, :1], context.expand(len(tokens), -1, -1), tokens[:, 3:]], 1)
    check_gradients(ours, whole_pass(model, tokens, ids.argmax(-1), [(1, deep)]), [context, deep])


def test_active_dropout_switches_sharing_off(monkeypatch):
    clip, _ = tiny.clip()
    context, deep = leaf(2, 32), leaf(2, 32, seed=2)
    prompts = clip.text.prompts(CLASSES, n_context=2).with_context(context)
    edits = {1: Edit(tokens=deep, q=nn.Sequential(nn.Dropout(0.5), Low(*low_rank(32, 32, 3))))}
    edits[1].q.eval()
    shared = clip.text(prompts, edits)
    edits[1].q.train()
    calls = []
    original = TextTower._run_whole
    monkeypatch.setattr(TextTower, "_run_whole", lambda *args: calls.append(1) or original(*args))
    torch.manual_seed(0)
    dropped = clip.text(prompts, edits)
    assert calls == [1]
    assert not torch.allclose(dropped, shared)
    edits[1].q[0].p = 1e-30  # still active, but drops nothing: the unshared pass must give the shared result
    check_gradients(clip.text(prompts, edits), shared, [context, deep])


def test_one_class_and_names_with_a_common_start():
    clip, model = tiny.clip()
    for names in (["cat"], ["striped red star", "striped red heart"], ["cat", "cat"]):
        ids = clip.text.tokenize([f"a photo of a {c}." for c in names])
        close(clip.text(clip.text.prompts(names, template="a photo of a {}.")), model.encode_text(ids))


def test_siglip_context_enters_the_padded_sequence():
    clip, model = tiny.clip("siglip")
    context = leaf(3, 32)
    prompts = clip.text.prompts(CLASSES, n_context=3).with_context(context)
    ids = clip.text.tokenize(["X X X " + c.replace("_", " ") + "." for c in CLASSES])
    x = model.text.token_embedding(ids)
    x = torch.cat([context.expand(len(x), -1, -1), x[:, 3:]], 1) + model.text.positional_embedding
    x = model.text.ln_final(model.text.transformer(x))[:, -1]
    check_gradients(clip.text(prompts), model.text.text_projection(x), [context])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t.prompts([]), "no class names"),
        (lambda t: t.prompts(["cat"], template="a photo"), r"exactly one \{\}"),
        (lambda t: t.prompts(["cat " * 100]), "has 10. tokens, the text tower takes 75"),
        (lambda t: t.prompts(["cat", "dog"]).with_context(torch.zeros(2, 32)), "2 tokens does not fit"),
        (lambda t: t.prompts(["cat"], n_context=2).with_context(torch.zeros(2, 48)), "width 48, .* needs 32"),
    ],
)  # fmt: skip
def test_text_errors(call, message):
    clip, _ = tiny.clip()
    with pytest.raises(UserError, match=message):
        call(clip.text)


def test_unsupported_towers_are_refused():
    config = {**tiny.CONFIGS["vit"], "vision_cfg": {"timm_model_name": "test_resnet", "image_size": 160}}
    config["vision_cfg"]["timm_pool"], config["vision_cfg"]["timm_proj"] = "", "linear"
    model = make_model({**config, "vision_cfg": {**config["vision_cfg"], "timm_pool": "avg"}})
    with pytest.raises(UserError, match="not supported"):
        clip_of(model, name="x", preprocess=Preprocess(), tokenizer=open_clip.SimpleTokenizer())
