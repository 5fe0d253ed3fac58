"""Methods without numbers of their originals, held against independent computations and special cases."""

from typing import Any

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor

from vlprompt.config.compose import compose
from vlprompt.errors import UserError
from vlprompt.learners.base import Learner
from vlprompt.learners.cocoop import CoCoOp
from vlprompt.learners.coop import CoOp
from vlprompt.learners.kgcoop import KgCoOp
from vlprompt.learners.lp_plus_plus import LPPlusPlus
from vlprompt.learners.mma import MMA
from vlprompt.learners.mmrl import MMRL
from vlprompt.learners.mmrl_plus_plus import MMRLPlusPlus
from vlprompt.learners.prograd import ProGrad
from vlprompt.learners.promptsrc import PromptSRC
from vlprompt.learners.tcp import TCP
from vlprompt.learners.tip_adapter import TipAdapter
from vlprompt.towers import Edit, Images

CLASSES = ["cat", "striped red star", "a_very_long_name_with_many_tokens"]
LABELS = torch.tensor([0, 1, 2, 1])
WORDS = {"n_context": 4, "ctx_init": "a photo of a"}


@pytest.fixture(scope="module")
def world() -> tuple[Any, Any, Images]:
    """A small CLIP in float64, what it borrows from, and four images."""
    clip, model = tiny.clip()
    return clip, model, Images(tiny.pixels(model, len(LABELS)))


def double(learner: Any) -> Any:
    """With parameters in the model's float64, moved away from where they start."""
    learner.double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in learner.parameters():
            p += 0.05 * torch.randn(p.shape, generator=generator).to(p)
    return learner


def gradients(learner: Learner, images: Images, labels: Tensor = LABELS) -> dict[str, Tensor]:
    learner.zero_grad()
    learner.backward(images, labels)
    return {name: p.grad for name, p in learner.named_parameters() if p.grad is not None}


# --- ProGrad


def by_hand(learner: ProGrad, images: Images, labels: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The gradients of cross-entropy and of the divergence from zero-shot predictions, each from a pass of its own."""
    clip, gradients_by_part = learner.clip, []
    for part in ("domain", "general"):
        context = learner.context.detach().clone().requires_grad_()
        texts = clip.text.prompts(CLASSES, n_context=learner.n_context).with_context(context)
        image = F.normalize(clip.image(images), dim=-1)
        logits = clip.scale * image @ F.normalize(clip.text(texts), dim=-1).T
        names = clip.text(clip.text.prompts(CLASSES, template=learner.template))
        frozen = clip.scale * image @ F.normalize(names, dim=-1).T
        T = learner.temperature
        if part == "domain":
            loss = F.cross_entropy(logits, labels)
        else:
            loss = F.kl_div(F.log_softmax(logits / T, -1), F.softmax(frozen / T, -1), reduction="batchmean") * T**2
        loss.backward()
        gradients_by_part.append(context.grad.numpy().copy())
    return gradients_by_part[0], gradients_by_part[1]


@pytest.mark.parametrize("strength", [1.0, 0.8])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_prograd_takes_away_what_opposes(world: Any, strength: float, temperature: float) -> None:
    clip, _, images = world
    opposed = []
    zero_shot = Learner(clip, CLASSES)
    unlikely = zero_shot(images, zero_shot.encode_classes()).argmin(-1)
    for start, labels in enumerate([LABELS, unlikely] * 2):
        torch.manual_seed(start)
        learner = ProGrad(clip, CLASSES, n_context=5, strength=strength, temperature=temperature).double()
        torch.nn.init.normal_(learner.context, std=0.1)
        domain, general = by_hand(learner, images, labels)
        cosine = (domain * general).sum() / np.linalg.norm(domain) / np.linalg.norm(general)
        opposed.append(cosine < 0)
        expected = domain
        if cosine < 0:
            unit = general / np.linalg.norm(general)
            expected = domain - strength * (domain * unit).sum() * unit
        np.testing.assert_allclose(
            gradients(learner, images, labels)["context"].numpy(), expected, rtol=1e-9, atol=1e-12
        )
    assert set(opposed) == {True, False}  # both cases were met


def test_prograd_without_projection_is_coop(world: Any) -> None:
    clip, _, images = world
    ours = double(ProGrad(clip, CLASSES, n_context=4, strength=0.0))
    coop = double(CoOp(clip, CLASSES, **WORDS))
    assert torch.equal(ours.context, coop.context)  # the template's words
    torch.testing.assert_close(gradients(ours, images), gradients(coop, images))


def test_prograd_starts_with_zeros_before_the_words(world: Any) -> None:
    clip, _, _ = world
    context = ProGrad(clip, CLASSES, n_context=6, template="a centered photo of {}.").context
    assert not context[:2].any()
    torch.testing.assert_close(context[2:], clip.text.embed_phrase("a centered photo of").float())


def fixed_words(learner: Any) -> list[Tensor]:
    """Of each class, the embedded tokens from the context to the end token."""
    first = learner.text.n_prefix_tokens + learner.n_context
    rows, shared = learner.prompts.whole(), learner.prompts.shared.shape[-2]
    return [row[first : shared + end] for row, end in zip(rows, learner.prompts.eot, strict=True)]


def embedded(clip: Any, text: str) -> Tensor:
    return clip.text.embed(clip.text.tokenize([text])[0, 1 : 1 + clip.text.count(text)])


def test_prograd_counts_words_and_keeps_the_tokens_that_are_more(world: Any) -> None:
    """With a comma, the last token of the template's words stands before the name, and is not learned."""
    clip, _, _ = world
    learner = ProGrad(clip, CLASSES, n_context=9, template="a type of pet, a photo of a {}.")
    words = embedded(clip, "a type of pet, a photo of a").float()
    assert len(words) == 9
    assert not learner.context[0].any()
    assert torch.equal(learner.context[1:], words[:8])
    for tokens, name in zip(fixed_words(learner), CLASSES, strict=True):
        assert torch.equal(tokens, embedded(clip, f"a {name.replace('_', ' ')}."))
    with pytest.raises(UserError, match=r"n_context is 7, .* 8 words"):
        ProGrad(clip, CLASSES, n_context=7, template=learner.template)


@pytest.mark.parametrize("class_specific", [False, True])
def test_prograd_from_random_values(world: Any, class_specific: bool) -> None:
    clip, _, _ = world
    shape = (3, 20, clip.text.width) if class_specific else (20, clip.text.width)
    learner = ProGrad(clip, CLASSES, n_context=20, init="random", class_specific=class_specific)
    assert learner.context.shape == shape
    assert learner.context.std().item() == pytest.approx(0.02, rel=0.2)
    assert torch.equal(fixed_words(learner)[0], embedded(clip, "cat."))
    with pytest.raises(UserError, match="init=random"):
        ProGrad(clip, CLASSES, class_specific=True)


# --- The length of a phrase


@pytest.mark.parametrize("kind", [CoOp, CoCoOp, KgCoOp, TCP])
@pytest.mark.parametrize(
    ("phrase", "n", "left"), [("a photo of", 3, ""), ("a_photo_of a", 4, ""), ("a photo, of a", 4, "a")]
)
def test_a_context_is_as_long_as_its_phrase_has_words(world: Any, kind: Any, phrase: str, n: int, left: str) -> None:
    """Whatever number is given next to it, and whatever number of tokens the words have."""
    clip, _, _ = world
    more = {"reduction": 4} | ({"layer": 2} if kind is TCP else {})
    learner = kind(clip, CLASSES, n_context=7, ctx_init=phrase, **(more if kind in (CoCoOp, TCP) else {}))
    assert (learner.n_context, *learner.context.shape) == (n, n, clip.text.width)
    assert torch.equal(learner.context, embedded(clip, phrase.replace("_", " ")).float()[:n])
    assert torch.equal(fixed_words(learner)[0], embedded(clip, f"{left} cat."))


# --- KgCoOp, PromptSRC


def test_without_their_weights_they_are_the_methods_that_they_build_on(world: Any) -> None:
    clip, _, images = world
    coop = gradients(double(CoOp(clip, CLASSES, **WORDS)), images)
    torch.testing.assert_close(gradients(double(KgCoOp(clip, CLASSES, weight=0.0)), images), coop)
    deep = {"depth": 1, "image_depth": 0}
    none = {"text_weight": 0.0, "image_weight": 0.0, "logit_weight": 0.0}
    torch.testing.assert_close(gradients(double(PromptSRC(clip, CLASSES, **deep, **none)), images), coop)


# --- TCP


def test_tcp_without_tokens_is_kgcoop_and_without_weight_coop(world: Any) -> None:
    clip, _, images = world
    kgcoop = gradients(double(KgCoOp(clip, CLASSES)), images)
    torch.testing.assert_close(gradients(double(TCP(clip, CLASSES, **WORDS, layer=None)), images), kgcoop)
    coop = gradients(double(CoOp(clip, CLASSES, **WORDS)), images)
    torch.testing.assert_close(gradients(double(TCP(clip, CLASSES, **WORDS, layer=None, weight=0.0)), images), coop)


def test_tcp_writes_tokens_that_are_made_of_each_class_alone(world: Any) -> None:
    clip, _, _ = world
    learner = double(TCP(clip, CLASSES, layer=2))
    got = learner.encode_classes()
    for c, name in enumerate(CLASSES):
        known = F.normalize(clip.text(clip.text.prompts([name], template="a photo of a {}.")), dim=-1)
        hidden = learner.down(known)
        tokens = learner.up(hidden * torch.sigmoid(1.702 * hidden)).view(4, -1)
        prompts = clip.text.prompts([name], template="a photo of a {}.").with_context(learner.context)
        torch.testing.assert_close(got[c], clip.text(prompts, {2: Edit(tokens=tokens)})[0])


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"learned_template": "{}, a type of car"}, "cat, a type of car"),
        ({"learned_template": "person doing {}."}, "person doing cat."),
        ({"learned_template": "{} texture.", "ctx_init": "a photo of a"}, "cat texture."),
        ({"learned_template": "X X {}.", "n_context": 2, "n_tokens": 4}, "X X cat."),
    ],
)
def test_tcp_learns_the_first_tokens_of_a_text_and_keeps_the_rest(world: Any, settings: Any, text: str) -> None:
    clip, _, _ = world
    learner = double(TCP(clip, CLASSES, layer=2, **settings))
    assert torch.equal(fixed_words(learner)[0], embedded(clip, text))
    assert learner.class_tokens().shape == (3, 4, clip.text.width)
    assert learner.encode_classes().isfinite().all()


def test_tcp_starts_as_the_original() -> None:
    """The properties of the start that the original draws for itself, in a width of 128 and an embedding of 64."""
    clip, _ = tiny.clip()
    learner = TCP(clip, CLASSES, layer=2)
    assert learner.context.std().item() == pytest.approx(0.02, rel=0.2)
    for layer in (learner.down, learner.up):
        bound = layer.in_features**-0.5
        assert layer.weight.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.2)
    assert learner.up.out_features == 4 * clip.text.width
    with pytest.raises(UserError, match=r"n_tokens is 5, allowed is 1 to 4"):
        TCP(clip, CLASSES, layer=2, n_tokens=5)


# --- MMRL


def text_with_inserted(model: Any, ids: Tensor, tokens: dict[int, Tensor]) -> Tensor:
    """The library's blocks over 77 tokens and those inserted after the start token, new ones at each layer."""
    x, width = model.token_embedding(ids) + model.positional_embedding, 0
    for layer, block in enumerate(model.transformer.resblocks):
        if layer in tokens:
            new = tokens[layer].expand(len(x), -1, -1)
            x, width = torch.cat([x[:, :1], new, x[:, 1 + width :]], 1), new.shape[1]
        mask = torch.full((x.shape[1], x.shape[1]), -torch.inf, dtype=x.dtype).triu(1)
        x = block(x, attn_mask=mask)
    x = model.ln_final(x)
    return x[torch.arange(len(x)), ids.argmax(-1) + width] @ model.text_projection


def image_with_inserted(model: Any, pixels: Tensor, tokens: dict[int, Tensor]) -> tuple[Tensor, Tensor]:
    """Class token and mean of the inserted ones, both normed, from the library's blocks."""
    visual = model.visual
    x = visual.conv1(pixels).flatten(2).mT
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], 1) + visual.positional_embedding
    x, width = visual.ln_pre(x), 0
    for layer, block in enumerate(visual.transformer.resblocks):
        if layer in tokens:
            new = tokens[layer].expand(len(x), -1, -1)
            x, width = torch.cat([x[:, :1], new, x[:, 1 + width :]], 1), new.shape[1]
        x = block(x)
    x = visual.ln_post(x)
    return x[:, 0], x[:, 1 : 1 + width].mean(1)


def test_mmrl_against_the_librarys_blocks(world: Any) -> None:
    clip, model, images = world
    learner = double(MMRL(clip, CLASSES, space=20, first_layer=1, n_tokens=3))
    tokens = {
        tower: {1 + i: layer(learner.tokens) for i, layer in enumerate(learner.maps[tower])}
        for tower in ("image", "text")
    }
    ids = clip.text.tokenize([f"a photo of a {name.replace('_', ' ')}." for name in CLASSES])
    classes = text_with_inserted(model, ids, tokens["text"])
    torch.testing.assert_close(learner.encode_classes(), classes)
    by_class, by_tokens = image_with_inserted(model, images.pixels, tokens["image"])
    features = (by_class @ model.visual.proj, by_tokens @ learner.projection)
    torch.testing.assert_close(learner.encode_both(images), features)

    cosines = [clip.scale * F.normalize(f, dim=-1) @ F.normalize(classes, dim=-1).T for f in features]
    torch.testing.assert_close(learner(images, learner.encode_classes()), 0.7 * cosines[0] + 0.3 * cosines[1])
    frozen = F.normalize(model.encode_image(images.pixels)), F.normalize(model.encode_text(ids))
    near = [(F.normalize(a) * b).sum(-1).mean() for a, b in zip((features[0], classes), frozen, strict=True)]
    losses = [F.cross_entropy(c, LABELS) for c in cosines]
    expected = 0.7 * losses[0] + 0.3 * losses[1] + 1.0 * (2 - near[0] - near[1])
    torch.testing.assert_close(learner.loss(images, LABELS)[0], expected)


def test_mmrl_tells_other_classes_apart_by_the_class_token(world: Any) -> None:
    clip, _, images = world
    learner = double(MMRL(clip, CLASSES, space=20, first_layer=1))
    alone = double(MMRL(clip, CLASSES, space=20, first_layer=1, alpha=1.0))
    alone.load_state_dict(learner.state_dict())
    for one in (learner, alone):
        one.bind(["dog", "sea"])
    classes = learner.encode_classes()
    torch.testing.assert_close(learner(images, classes), alone(images, classes))
    for one in (learner, alone):
        one.bind([CLASSES[2], CLASSES[0]], rows=[2, 0])
    classes = learner.encode_classes()
    assert not torch.allclose(learner(images, classes), alone(images, classes))


@pytest.mark.parametrize(("classes", "rows"), [(CLASSES, None), (CLASSES, range(3)), (CLASSES[:2], [0, 1])])
def test_mmrl_judges_other_data_sets_by_the_class_token(world: Any, classes: Any, rows: Any) -> None:
    """Whether their classes are those trained on (ImageNet-V2), some of them (-A), or unrelated."""
    clip, _, images = world
    learner = double(MMRL(clip, CLASSES, space=20, first_layer=1))
    learner.bind(classes, rows)
    fused = learner(images, learner.encode_classes())
    learner.bind(classes, rows, transfer=True)
    main = learner(images, learner.encode_classes())
    learner.alpha = 1.0
    learner.bind(classes, rows)
    torch.testing.assert_close(learner(images, learner.encode_classes()), main)
    assert not torch.allclose(fused, main)


def test_mmrl_plus_plus_whose_tokens_are_overwritten_is_mmrl(world: Any) -> None:
    """Without what it adds (residuals of zero, nothing left in the slot) and with the same second projection."""
    clip, model, images = world
    form = {"space": 20, "first_layer": 1, "n_tokens": 3, "weight": 0.5}
    learner = double(MMRLPlusPlus(clip, CLASSES, **form, beta=1.0, projection_rank=2))
    plain = double(MMRL(clip, CLASSES, **form))
    for residual in (learner.maps["image"].residual, learner.maps["text"].residual, learner.residual):
        residual.b.data.zero_()
    plain.tokens.data.copy_(learner.tokens)
    plain.projection.data.copy_(model.visual.proj)
    for tower in ("image", "text"):
        for layer, linear in enumerate(plain.maps[tower]):
            linear.weight.data.copy_(learner.maps[tower].weight)
            linear.bias.data.copy_(learner.maps[tower].bias[layer])
    expected = plain.loss(images, LABELS)
    torch.testing.assert_close(learner.loss(images, LABELS), expected)
    learner.beta = 0.5
    assert not torch.allclose(learner.loss(images, LABELS)[0], expected[0])


def test_another_share_on_other_data_sets(world: Any) -> None:
    clip, _, images = world
    learner = double(MMRLPlusPlus(clip, CLASSES, space=20, first_layer=1, beta=0.9, target_beta=0.3))
    same = double(MMRLPlusPlus(clip, CLASSES, space=20, first_layer=1, beta=0.3))
    same.load_state_dict(learner.state_dict())

    def both(*, transfer: bool) -> list[Tensor]:
        for one in (learner, same):
            one.bind(CLASSES, transfer=transfer)
        return [one(images, one.encode_classes()) for one in (learner, same)]

    torch.testing.assert_close(*both(transfer=True))
    assert not torch.allclose(*both(transfer=False))


def test_the_share_of_each_target_is_asked_for() -> None:
    asked = ["method=mmrl_plus_plus", "protocol=domain_generalization", "dataset=imagenet"]

    def shares(*more: str) -> dict[str, float | None]:
        targets = compose([*asked, *more])["targets"]
        return {name: described["method"]["target_beta"] for name, described in targets.items()}

    assert set(shares().values()) == {None}
    printed = {"imagenet_v2": 0.9, "imagenet_sketch": 0.7, "imagenet_a": 0.8, "imagenet_r": 0.9}
    assert shares("recipe=mmrl_plus_plus/domain_generalization_per_target") == printed


# --- MMA


def test_mma_scales_gradients_and_not_the_output(world: Any) -> None:
    """Weights see no alpha, the stream sees the true gradient."""
    clip, _, _ = world
    learner, alpha = double(MMA(clip, CLASSES, first_layer=1, dim=5, alpha=0.01)), 0.01
    down, shared, up = parts = learner.down["text"]["1"], learner.shared["1"], learner.up["text"]["1"]
    u, towards = (torch.randn(3, clip.text.width, dtype=torch.double) for _ in range(2))
    u.requires_grad_()
    plain = alpha * up(F.relu(shared(F.relu(down(u)))))
    ours = learner.adapt(*parts, u)
    torch.testing.assert_close(ours, plain)
    weights = [p for part in parts for p in part.parameters()]
    ours, true = (torch.autograd.grad((y * towards).sum(), [u, *weights]) for y in (ours, plain))
    torch.testing.assert_close(ours[0], true[0])
    torch.testing.assert_close(ours[1:], tuple(g / alpha for g in true[1:]))


@pytest.mark.parametrize("wrong", [{"first_layer": 3}, {"last_layer": 5}, {"alpha": 0.0}, {"dim": 0}])
def test_settings_of_mma_are_checked(world: Any, wrong: Any) -> None:
    with pytest.raises(UserError, match="allowed"):
        MMA(world[0], CLASSES, **{"first_layer": 1, **wrong})


def test_mmrl_needs_a_tower_whose_class_token_a_matrix_reads() -> None:
    clip, _ = tiny.clip("timm", torch.float32)
    with pytest.raises(UserError, match="choose one of OpenAI's ViTs"):
        MMRL(clip, CLASSES, first_layer=1)


def test_mmrl_starts_with_equal_maps_and_a_projection_of_its_own(world: Any) -> None:
    clip, model, _ = world
    torch.manual_seed(0)
    learner = MMRL(clip, CLASSES, first_layer=1, space=64, n_tokens=8)
    for maps in learner.maps.values():
        first, *rest = maps
        assert rest
        for other in rest:
            assert torch.equal(other.weight, first.weight)
            assert torch.equal(other.bias, first.bias)
            assert other.weight is not first.weight
    assert learner.projection.shape == model.visual.proj.shape
    assert not torch.allclose(learner.projection, model.visual.proj.float())
    assert learner.projection.std().item() == pytest.approx(clip.image.width**-0.5, rel=0.1)
    assert learner.tokens.std().item() == pytest.approx(0.02, rel=0.1)


# --- LP++


def lp_plus_plus(clip: Any, n_epochs: int) -> tuple[LPPlusPlus, Tensor, Tensor]:
    """A learner with features of classes of different sizes."""
    generator = torch.Generator().manual_seed(5)
    labels = torch.tensor([0] * 20 + [1] * 10 + [2] * 5)
    features = torch.randn(len(labels), clip.image.embed_dim, generator=generator, dtype=torch.float64)
    torch.manual_seed(1)
    return LPPlusPlus(clip, CLASSES, iterations=n_epochs).double(), features, labels


def test_lp_plus_plus_against_its_formulas(world: Any) -> None:
    clip, _, _ = world
    learner, features, labels = lp_plus_plus(clip, 23)
    bias = learner.bias.detach().numpy().copy()
    assert 0 < np.abs(bias).max() <= features.shape[1] ** -0.5
    learner.prepare([(Images(features=features), labels)], None)

    f = features.numpy() / np.linalg.norm(features.numpy(), axis=1, keepdims=True)
    texts = F.normalize(clip.text(clip.text.prompts(CLASSES, template="a photo of a {}.")), dim=-1).numpy()
    wanted, cosines, n = np.eye(3)[labels], f @ texts.T, len(f)
    weight = np.stack([f[labels == c].sum(0) for c in range(3)])
    alpha = np.full(3, 250 * np.mean([cosines[labels == c, c].mean() for c in range(3)]))
    step = 4 * n / np.linalg.eigvalsh(f.T @ f).max()
    velocities, summed = [np.zeros_like(weight), np.zeros_like(bias)], np.zeros(3)
    for epoch in range(1, 24):
        logits = f @ weight.T + alpha * cosines + bias
        odds = np.exp(logits - logits.max(1, keepdims=True))
        slope = (odds / odds.sum(1, keepdims=True) - wanted) / n
        summed += (slope * cosines).sum(0)
        velocities = [0.9 * velocities[0] + slope.T @ f, 0.9 * velocities[1] + slope.sum(0)]
        weight, bias = weight - step * velocities[0], bias - step * velocities[1]
        if epoch % 10 == 0:
            alpha = alpha - n / (4 * (cosines**2).sum(0).max()) * summed
    for ours, theirs in ((learner.weight, weight), (learner.bias, bias), (learner.alpha, alpha)):
        np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=1e-9)


def test_lp_plus_plus_ends_with_the_last_of_the_best_epochs(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clip, _, _ = world
    learner, features, labels = lp_plus_plus(clip, 5)
    weights = [learner.weight.detach().clone() for _ in learner.descend(F.normalize(features, dim=-1), labels)]
    learner, *_ = lp_plus_plus(clip, 5)
    right = iter([1, 3, 2, 3, 0])
    monkeypatch.setattr(learner, "n_right", lambda features, labels: next(right))
    images = [(Images(features=features), labels)]
    learner.prepare(images, images)
    assert torch.equal(learner.weight, weights[3])
    assert not torch.equal(learner.weight, weights[1])


# --- Tip-Adapter


def test_tip_adapter_by_hand(world: Any) -> None:
    """Logits as a sum over cached images, one by one; and a search that finds what a brute-force one finds."""
    clip, _, images = world
    torch.manual_seed(0)
    train, val = torch.randn(7, 24, dtype=torch.float64), torch.randn(30, 24, dtype=torch.float64)
    labels, val_labels = torch.tensor([2, 0, 1, 1, 2, 0, 0]), torch.arange(30) % 3
    learner = TipAdapter(clip, CLASSES, n_views=2, alpha=2.0, beta=3.0, search_scale=[7.0, 3.0], search_steps=[5, 4])
    learner.double()
    learner.prepare([(Images(features=train), labels)], None)
    classes = F.normalize(clip.text(clip.text.prompts(CLASSES, template="a photo of a {}.")), dim=-1)

    def expected(features: Tensor, alpha: float, beta: float) -> Tensor:
        features = F.normalize(features, dim=-1)
        logits = clip.scale * features @ classes.T
        for key, label in zip(F.normalize(train, dim=-1), labels, strict=True):
            logits[:, label] += alpha * torch.exp(-beta * (1 - features @ key))
        return logits

    features = clip.image(images)
    torch.testing.assert_close(learner(images, learner.encode_classes()), expected(features, 2.0, 3.0))
    learner.conclude([], [(Images(features=val), val_labels)])
    grid = [(0.1 + i * 6.9 / 5, 0.1 + j * 2.9 / 4) for i in range(5) for j in range(4)]
    right = [(expected(val, alpha, beta).argmax(-1) == val_labels).sum() for beta, alpha in grid]
    assert len(set(map(int, right))) > 1
    assert (learner.beta.item(), learner.alpha.item()) == pytest.approx(grid[int(torch.stack(right).argmax())])


def test_a_cache_of_any_length_is_loaded_into_a_new_learner(world: Any) -> None:
    clip, _, images = world
    for finetune in (False, True):
        learner = TipAdapter(clip, CLASSES, finetune=finetune, n_views=1)
        learner.prepare([(images, LABELS)], None)
        again = TipAdapter(clip, CLASSES, finetune=finetune).double()
        again.load_state_dict(learner.state_dict(), strict=True)
        classes = learner.encode_classes()
        assert torch.equal(again(images, classes), learner(images, classes))
        assert [name for name, _ in again.named_parameters()] == (["keys"] if finetune else [])
        again.keys.detach().zero_()
        assert learner.keys.any()
