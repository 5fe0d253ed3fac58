"""Families of timm's vision transformers: features and every edit site, against timm's own forward pass, in fp64."""

from functools import cache

import pytest
import timm
import torch
from test_towers import Low, check_gradients, close, leaf, low_rank
from torch.func import functional_call

from vlprompt.errors import UserError
from vlprompt.towers import Edit, Images, Prefix, Preprocess
from vlprompt.towers.block import Weights
from vlprompt.towers.clip import build
from vlprompt.towers.image import timm_vit

PLAIN = "vit_tiny_patch16_224"
FAMILIES = {
    "vit": (PLAIN, {}),
    "qk_norm": (PLAIN, {"qk_norm": True}),
    "scaled": (PLAIN, {"scale_attn_norm": True, "scale_mlp_norm": True}),
    "no_bias": (PLAIN, {"qkv_bias": False, "proj_bias": False}),
    "no_class_token": (PLAIN, {"class_token": False, "global_pool": "avg"}),
    "average": (PLAIN, {"global_pool": "avg"}),
    "average_of_all": (PLAIN, {"global_pool": "avgmax", "fc_norm": False, "pool_include_prefix": True}),
    "dynamic": (PLAIN, {"dynamic_img_size": True}),
    "dinov2": ("vit_small_patch14_dinov2", {"img_size": 28}),
    "registers": ("vit_small_patch14_reg4_dinov2", {"img_size": 28}),
    "gated_mlp": ("vit_giant_patch14_reg4_dinov2", {"img_size": 28}),
    "registers_averaged": ("vit_medium_patch16_reg4_gap_256", {}),
    "siglip": ("vit_base_patch16_siglip_224", {}),
    "siglip_averaged": ("vit_base_patch16_siglip_gap_224", {}),
    "registers_pooled": ("vit_so150m_patch16_reg4_map_256", {}),
    "clip": ("vit_base_patch16_clip_quickgelu_224", {}),
    "deit3": ("deit3_small_patch16_224", {}),
    "distilled": ("deit_tiny_distilled_patch16_224", {}),
    "beit3": ("beit3_base_patch16_224", {}),
    "hybrid": ("vit_tiny_r_s16_p8_224", {}),
}
PREFIX_TOKENS = {"no_class_token": 0, "siglip": 0, "siglip_averaged": 0, "distilled": 2, "registers": 5, "gated_mlp": 5}
PREFIX_TOKENS |= {"registers_averaged": 4, "registers_pooled": 4}
SITES = {"o": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"} | dict.fromkeys("qkv", "attn.qkv")
D = 48


@cache
def model_of(family):
    """Three blocks of the family with random numbers in all tensors: norms, gains, registers, positions."""
    name, more = FAMILIES[family]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = timm.create_model(
            name, **{"num_classes": 0, "depth": 3, "embed_dim": D, "num_heads": 3, "img_size": 32, **more}
        )
        model = model.double().eval().requires_grad_(False)
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape))
    return model


def made(family):
    model = model_of(family)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, 3, *model.patch_embed.img_size, generator=generator, dtype=torch.float64)
    return model, timm_vit(Weights(model)), x


QUICK = ("registers", "gated_mlp", "siglip", "distilled", "beit3")  # one of each way to pool and of each kind of part
families = pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FAMILIES]
)


@families
def test_features_are_timms(family):
    model, tower, x = made(family)
    x = x.requires_grad_()
    check_gradients(tower(Images(x)), model(x), [x])
    close(tower(Images(x)), model.forward_head(model.forward_features(x), pre_logits=True))
    assert tower.n_prefix_tokens == PREFIX_TOKENS.get(family, 1)
    assert tower.embed_dim == tower(Images(x)).shape[1]
    assert tower.width == D
    assert tower.depth == 3


@families
def test_prompts_follow_the_prefix_tokens_and_are_dropped(family):
    """Against hooks that append them after all tokens, and take them off before the final norm."""
    model, tower, x = made(family)
    prompts = {layer: leaf(2, D, seed=layer) for layer in range(3)}
    edits = {layer: Edit(tokens=tokens) for layer, tokens in prompts.items()}

    def append(layer):
        def hook(module, args):
            y = args[0] if layer == 0 else args[0][:, :-2]
            return (torch.cat([y, prompts[layer].expand(len(y), -1, -1)], 1), *args[1:])

        return hook

    handles = [model.norm_pre.register_forward_pre_hook(append(0))]
    handles += [model.blocks[layer].register_forward_pre_hook(append(layer)) for layer in (1, 2)]
    handles += [model.norm.register_forward_pre_hook(lambda module, args: (args[0][:, :-2],))]
    try:
        expected = model(x)
    finally:
        for handle in handles:
            handle.remove()
    check_gradients(tower(Images(x), edits), expected, list(prompts.values()))
    nothing = {"attn": lambda h, y: h * 0, "mlp": lambda h, y: h * 0}
    table = tower.tokens(Images(x), {2: Edit(tokens=prompts[2], **nothing)})
    at = tower.n_prefix_tokens
    close(table[:, at : at + 2], prompts[2].expand(2, -1, -1))


@families
def test_low_rank_updates_are_changed_weights(family):
    """All sites at once, against timm's own model with other weights, and against the merged tower."""
    model, tower, x = made(family)
    clip = build(Weights(model), name="x", preprocess=Preprocess(), words=None)
    state, factors, changed, deltas, edits = model.state_dict(), [], {}, {}, {}
    for seed, (site, module) in enumerate(SITES.items()):
        matrix, name = tower.blocks[1].matrices[site], f"blocks.1.{module}.weight"
        assert matrix.name == name
        a, b = low_rank(matrix.n_in, matrix.n_out, seed=10 + seed)
        whole = changed.get(name, state[name]).clone()
        whole[matrix.rows] += (a @ b).T
        changed[name], deltas["image", 1, site], edits[site] = whole, (a @ b).T.detach(), Low(a, b)
        factors += [a, b]
    ours = tower(Images(x), {1: Edit(**edits)})
    check_gradients(ours, functional_call(model, changed, (x,)), factors)
    close(clip.merge(deltas).image(Images(x)), ours)
    assert ((ours - tower(Images(x))).norm() / ours.norm()).item() > 1e-3


@families
@pytest.mark.parametrize("gated", [False, True])
def test_prefixes_are_more_keys_and_values(family, gated):
    model, tower, x = made(family)
    key, value = leaf(3, 4, D // 3, seed=1), leaf(3, 4, D // 3, seed=2)
    gate = leaf(3, seed=3) if gated else None
    attn = model.blocks[1].attn

    def textbook(u, **_):
        q, k, v = attn.qkv(u).unflatten(-1, (3, 3, -1)).permute(2, 0, 3, 1, 4)
        q, k = attn.q_norm(q) * (D // 3) ** -0.5, attn.k_norm(k)
        scores, more = q @ k.mT, q @ key.mT
        if gate is None:
            p = torch.cat([more, scores], -1).softmax(-1)
            a = p[..., :4] @ value + p[..., 4:] @ v
        else:
            a = scores.softmax(-1) @ v + gate[:, None, None] * (more.softmax(-1) @ value)
        return attn.proj(attn.norm(a.transpose(1, 2).flatten(2)))

    attn.forward = textbook
    try:
        expected = model(x)
    finally:
        del attn.forward
    ours = tower(Images(x), {1: Edit(prefix=Prefix(key=key, value=value, gate=gate))})
    check_gradients(ours, expected, [key, value] + ([gate] if gated else []))


@families
@pytest.mark.parametrize("site", ["attn", "mlp"])
def test_branches_are_replaced(family, site):
    model, tower, x = made(family)
    a, b, seen = leaf(D, D, seed=5), leaf(D, D, seed=6), {}
    block = model.blocks[1]
    norm = block.norm1 if site == "attn" else block.norm2
    handles = [
        norm.register_forward_pre_hook(lambda m, args: seen.update(x=args[0])),
        getattr(block, site).register_forward_hook(lambda m, _, h: h + torch.tanh(h @ a) + torch.tanh(seen["x"] @ b)),
    ]
    try:
        expected = model(x)
    finally:
        for handle in handles:
            handle.remove()
    ours = tower(Images(x), {1: Edit(**{site: lambda h, y: h + torch.tanh(h @ a) + torch.tanh(y @ b)})})
    check_gradients(ours, expected, [a, b])


@families
def test_skips_are_added(family):
    model, tower, x = made(family)
    a = leaf(D, D, seed=5)
    handle = model.blocks[1].register_forward_hook(lambda m, args, out: out + torch.tanh(m.norm1(args[0]) @ a))
    try:
        expected = model(x)
    finally:
        handle.remove()
    check_gradients(tower(Images(x), {1: Edit(skip=lambda u: torch.tanh(u @ a))}), expected, [a])


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("vit_small_patch16_dinov3", "Eva"),
        ("vit_pe_core_tiny_patch16_384", "Eva"),
        ("aimv2_large_patch14_224", "SwiGLU"),
        ("vit_dlittle_patch16_reg1_gap_256", "DiffAttention"),
        ("vit_base_patch16_rpn_224", "ResPostBlock"),
        ("vit_pwee_patch16_reg1_gap_256", "ParallelScalingBlock"),
        ("resnet18", "ResNet"),
    ],
)
def test_other_kinds_are_refused_in_one_sentence(name, kind):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0, **({} if kind == "ResNet" else {"depth": 1}))
    with pytest.raises(UserError, match=rf"{kind}\b.* not supported: allowed") as caught:
        timm_vit(Weights(model))
    assert "\n" not in str(caught.value)


def test_pooling_is_part_of_a_fingerprint():
    """The modules print the same, the features differ."""
    prints = []
    for more in ({"fc_norm": False}, {"fc_norm": False, "pool_include_prefix": True}):
        torch.manual_seed(1)
        net = timm.create_model(PLAIN, num_classes=0, depth=1, embed_dim=D, num_heads=3, global_pool="avg", **more)
        prints.append(build(Weights(net), name="x", preprocess=Preprocess(), words=None).image_fingerprint)
    assert prints[0] != prints[1]
