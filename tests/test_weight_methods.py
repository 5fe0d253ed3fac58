"""Methods that change the model's weights, backbones in 4 bits, the probe: each against an independent computation."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import scipy.linalg
import tiny
import torch
import torch.nn.functional as F
from running import succeed
from sklearn.linear_model import LogisticRegression
from test_transfer import TINY
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from vlprompt import sweep
from vlprompt.config.schema import Fit
from vlprompt.errors import UserError
from vlprompt.learners.base import Learner
from vlprompt.learners.bitfit import BitFit
from vlprompt.learners.fastfood import Fastfood, hadamard
from vlprompt.learners.flyp import FLYP
from vlprompt.learners.full_finetune import FullFinetune
from vlprompt.learners.hard_prompts import HardPrompts
from vlprompt.learners.intrinsic_dimension import IntrinsicDimension
from vlprompt.learners.linear_probe import LinearProbe
from vlprompt.learners.lora import LoRA
from vlprompt.learners.zero_shot import OtherModel
from vlprompt.results.costs import costs_of_use, count_flops
from vlprompt.results.store import find_records
from vlprompt.towers import Clip, Images, NeedsPixels
from vlprompt.towers.quantization import Quantized, quantize

CLASSES = ["cat", "striped red star", "a_very_long_name_with_many_tokens"]
LABELS = torch.tensor([0, 1, 2, 1])
TEMPLATE = "a photo of a {}."
ALL_SITES = ["q", "k", "v", "o", "fc1", "fc2"]


def gradients(learner: Learner, images: Images) -> dict[str, Tensor]:
    learner.zero_grad()
    learner.backward(images, LABELS)
    return {name.removeprefix("weights."): p.grad for name, p in learner.named_parameters() if p.grad is not None}


def evaluate(learner: Learner, images: Images) -> Tensor:
    with torch.no_grad():
        return learner.eval()(images, learner.encode_classes())


# contrastive fine-tuning


def test_flyp_has_the_loss_of_open_clip_s_training_and_takes_its_scale_along() -> None:
    clip, model = tiny.clip()
    images = Images(tiny.pixels(model, len(LABELS)))
    learner = FLYP(clip, CLASSES, captions=["art of a {}.", "the {} there."]).double()
    learner.log_scale.data += 0.3
    torch.manual_seed(4)
    captions = learner.captions_of(LABELS)
    assert {text.split()[0] for text in captions} == {"art", "the"}
    assert all(CLASSES[label] in text for label, text in zip(LABELS, captions, strict=True))
    torch.manual_seed(4)
    loss, logits = learner.loss(images, LABELS)
    ids = clip.text.tokenize([text.replace("_", " ") for text in captions])
    features = [F.normalize(f, dim=-1) for f in (model.encode_image(images.pixels), model.encode_text(ids))]
    torch.testing.assert_close(loss, open_clip.ClipLoss()(*features, learner.log_scale.exp()))
    assert not logits.requires_grad
    before = evaluate(Learner(clip, CLASSES), images)
    torch.testing.assert_close(evaluate(learner, images), before * np.exp(0.3))
    torch.testing.assert_close(evaluate(Learner(learner.merged(), CLASSES), images), before * np.exp(0.3))
    assert learner.merged().weights.tensor("logit_scale") == learner.log_scale


# the line between frozen and tuned weights


@pytest.mark.parametrize("kind", [BitFit, FLYP, FullFinetune, LoRA])
def test_the_line_from_the_frozen_to_the_tuned_model(kind: type[Learner]) -> None:
    clip, model = tiny.clip()
    images = Images(tiny.pixels(model, len(LABELS)))
    learner = kind(clip, CLASSES).double()
    torch.manual_seed(1)
    for p in learner.parameters():
        p.data += 0.1 * torch.randn_like(p)
    tuned = learner.eval().merged()

    def at(share: float) -> Tensor:
        return evaluate(OtherModel(clip.toward(tuned, share), CLASSES), images)

    assert torch.equal(at(0), evaluate(Learner(clip, CLASSES), images))
    torch.testing.assert_close(at(1), evaluate(learner, images))
    halves = {name: (clip.weights.tensor(name) + t) / 2 for name, t in tuned.weights.replaced.items()}
    half = evaluate(Learner(clip.with_weights(halves), CLASSES), images)
    torch.testing.assert_close(at(0.5), half * (tuned.scale / clip.scale) ** 0.5)


@pytest.mark.slow
def test_the_line_of_a_model_in_4_bits_is_near_its_ends() -> None:
    pytest.importorskip("bitsandbytes")
    clip = tiny.clip("vit", torch.float32)[0].quantized("nf4")
    images = Images(tiny.pixels(clip.weights.root, len(LABELS)))
    learner = LoRA(clip, CLASSES, sites=ALL_SITES)
    torch.manual_seed(1)
    for p in learner.parameters():
        p.data += 0.05 * torch.randn_like(p)
    tuned = learner.merged()
    ends = [evaluate(OtherModel(clip.toward(tuned, share), CLASSES), images) for share in (1e-6, 1 - 1e-6)]
    for end, expected in zip(ends, (Learner(clip, CLASSES), Learner(tuned, CLASSES)), strict=True):
        torch.testing.assert_close(end, evaluate(expected, images), rtol=1e-3, atol=1e-3)


# full fine-tuning and its restriction to biases


@pytest.mark.parametrize("kind", ["vit", "vit_ls", "resnet", "timm"])
def test_full_fine_tuning_has_the_gradients_of_open_clip_s_own_model(kind: str) -> None:
    clip, model = tiny.clip(kind)
    images = Images(tiny.pixels(model, len(LABELS)))
    ours = gradients(FullFinetune(clip, CLASSES), images)

    _, theirs = tiny.clip(kind)
    theirs.requires_grad_(True)
    texts = clip.text.tokenize([TEMPLATE.format(name.replace("_", " ")) for name in CLASSES])
    image, text = F.normalize(theirs.encode_image(images.pixels)), F.normalize(theirs.encode_text(texts))
    F.cross_entropy(theirs.logit_scale.exp().detach() * image @ text.T, LABELS).backward()
    expected = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    assert set(ours) == set(expected)
    for name, gradient in expected.items():
        assert (ours[name] - gradient).norm() <= 1e-8 * gradient.norm() + 1e-12, name


def test_bitfit_is_full_fine_tuning_restricted_to_the_biases() -> None:
    clip, model = tiny.clip()
    images = Images(tiny.pixels(model, len(LABELS)))
    learner = BitFit(clip, CLASSES)
    biases = {name for name, _ in model.named_parameters() if name.endswith("bias")}
    assert {name for name, _ in learner.weights.named_parameters()} == biases
    # a block: q, k, v, o, fc2 and two norms of d, fc1 of 4 d; around them three norms
    assert sum(p.numel() for p in learner.parameters()) == 3 * 11 * (48 + 32) + 2 * 48 + 32
    whole = gradients(FullFinetune(clip, CLASSES), images)
    for name, gradient in gradients(learner, images).items():
        assert torch.allclose(gradient, whole[name], rtol=1e-9, atol=1e-14), name


def test_what_trains_the_text_side_alone_reads_banked_features() -> None:
    clip, model = tiny.clip()
    images = Images(tiny.pixels(model))
    banked = Images(features=clip.image(images))
    for kind in (FullFinetune, BitFit, IntrinsicDimension):
        text, both = kind(clip, CLASSES, towers="text"), kind(clip, CLASSES)
        assert torch.equal(evaluate(text, banked), evaluate(text, images))
        with pytest.raises(NeedsPixels):
            evaluate(both, banked)
    with pytest.raises(NeedsPixels):  # a merged model is another model
        both.merged().to("cpu").image(banked)
    assert torch.equal(clip.with_weights(text.changed("text")).image(banked), banked.features)


def test_kept_weights_follow_the_parameters() -> None:
    clip, model = tiny.clip()
    images, learner = Images(tiny.pixels(model)), BitFit(clip, CLASSES)
    before = evaluate(learner, images)
    with torch.no_grad():
        for p in learner.parameters():
            p.add_(0.1)
    after = evaluate(learner, images)
    assert not torch.allclose(after, before)
    merged = Learner(learner.merged(), CLASSES)
    assert torch.allclose(evaluate(merged, images), after)


# intrinsic dimension


@pytest.mark.parametrize("n", [1, 2, 64, 128, 512])
def test_hadamard_is_scipy_s(n: int) -> None:
    x = torch.randn(3, n, dtype=torch.float64)
    assert torch.allclose(hadamard(x), x @ torch.from_numpy(scipy.linalg.hadamard(n)).double())


def dense(p: Fastfood) -> Tensor:
    """P, column by column."""
    return torch.stack([p(e) for e in torch.eye(p.n_in, dtype=p.gains.dtype)], 1)


def test_fastfood_is_the_product_of_its_factors() -> None:
    p = Fastfood(5, 150, norm=1.0, generator=torch.Generator().manual_seed(3)).double()
    h = torch.from_numpy(scipy.linalg.hadamard(64)).double()
    blocks = []
    for signs, order, gains in zip(p.signs.double(), p.order.long(), p.gains, strict=True):
        permutation = torch.eye(64, dtype=torch.float64)[order]
        blocks.append(h @ gains.diag() @ permutation @ h @ signs.diag())
    assert torch.allclose(dense(p), torch.cat(blocks)[:150, :5])


@pytest.mark.parametrize("d", [1, 10, 200])
def test_fastfood_s_columns_have_unit_length_and_are_nearly_orthogonal(d: int) -> None:
    p = dense(Fastfood(d, 40_000, norm=1.0, generator=torch.Generator().manual_seed(0)))
    gram = p.T @ p
    assert (gram.diagonal() - 1).abs().max() < 0.1
    assert (gram - gram.diagonal().diag()).abs().max() < 0.1
    assert abs(p.pow(4).mean() / p.pow(2).mean() ** 2 - 3) < 0.5  # as of a Gaussian


def test_theta_moves_the_weights_linearly_and_not_at_zero() -> None:
    clip, model = tiny.clip()
    images, learner = Images(tiny.pixels(model)), IntrinsicDimension(clip, CLASSES, dimension=20).double()
    frozen = {name: t for tower in ("image", "text") for name, t in learner.frozen(tower).items()}
    assert set(frozen) == {name for name, _ in model.named_parameters()} - {"logit_scale", "token_embedding.weight"}
    torch.testing.assert_close(evaluate(learner, images), evaluate(Learner(clip, CLASSES), images), rtol=1e-12, atol=0)

    def moved(theta: Tensor) -> dict[str, Tensor]:
        learner.theta.data = theta
        with torch.no_grad():
            changed = {name: t for tower in ("image", "text") for name, t in learner.changed(tower).items()}
        return {name: t - frozen[name] for name, t in changed.items()}

    a, b = torch.randn(2, 20, dtype=torch.float64)
    of_a, of_b = moved(a), moved(b)
    for name, move in moved(2 * a - 3 * b).items():
        assert torch.allclose(move, 2 * of_a[name] - 3 * of_b[name], atol=1e-12), name
    squares = sum(move.square().sum() for move in moved(torch.eye(20, dtype=torch.float64)[3]).values())
    assert squares.item() == pytest.approx(1, rel=0.1)  # over both towers


def test_intrinsic_gradient_is_the_projection_s_transpose_times_the_full_gradient() -> None:
    clip, model = tiny.clip()
    images = Images(tiny.pixels(model, len(LABELS)))
    learner = IntrinsicDimension(clip, CLASSES, dimension=7).double()
    gradient = gradients(learner, images)["theta"].clone()
    whole = gradients(FullFinetune(clip, CLASSES), images)
    expected = sum(
        dense(learner.projections[tower]).T @ torch.cat([whole[name].flatten() for name in learner.frozen(tower)])
        for tower in ("image", "text")
    )
    assert torch.allclose(gradient, expected, rtol=1e-8)

    def loss(i: int, step: float) -> float:
        with torch.no_grad():
            learner.theta.zero_()[i] = step
            return learner.loss(images, LABELS)[0].item()

    for i in (0, 6):
        assert (loss(i, 1e-5) - loss(i, -1e-5)) / 2e-5 == pytest.approx(gradient[i].item(), rel=1e-4)


def test_the_projection_takes_the_memory_of_the_weights_whatever_d_is() -> None:
    clip, _ = tiny.clip("vit", torch.float32)
    for d in (1, 200, 2000):
        learner = IntrinsicDimension(clip, CLASSES, dimension=d)
        weights = sum(t.nbytes for tower in ("image", "text") for t in learner.frozen(tower).values())
        assert sum(t.nbytes for t in learner.buffers()) < 2 * weights
        assert {name: t.numel() for name, t in learner.state_dict().items()} == {"theta": d}

        saved: list[int] = []
        with saved_tensors_hooks(lambda t, saved=saved: (saved.append(t.nbytes), t)[1], lambda t: t):
            learner.changed("image")
        assert sum(saved) == 0  # for the way back


def test_seed_and_dimension_of_the_projection_are_settings() -> None:
    clip, _ = tiny.clip("vit", torch.float32)
    moves = []
    for seed in (0, 0, 1):
        learner = IntrinsicDimension(clip, CLASSES, projection_seed=seed)
        learner.theta.data.fill_(1.0)
        moves.append(learner.changed("image")["visual.proj"])
    assert torch.equal(moves[0], moves[1])
    assert not torch.allclose(moves[0], moves[2])
    groups = [IntrinsicDimension(clip, CLASSES, dimension=d).param_groups(Fit(lr=1.0, epochs=1)) for d in (4, 100)]
    assert [group["lr"] for (group,) in groups] == [0.5, 0.1]  # steps of one length among the weights
    with pytest.raises(UserError, match="dimension is 0, allowed is 1 to"):
        IntrinsicDimension(clip, CLASSES, dimension=0)


PROJECTIONS = ["li", "aghajanyan", "said"]


def test_a_projection_of_each_tensor_moves_it_by_theta() -> None:
    clip, _ = tiny.clip()
    learner = IntrinsicDimension(clip, CLASSES, dimension=23, projection="aghajanyan").double()
    for seed in range(3):
        learner.theta.data = torch.randn(23, generator=torch.Generator().manual_seed(seed)).double()
        with torch.no_grad():
            moves = {name: t - learner.frozen("image")[name] for name, t in learner.changed("image").items()}
        for name, move in moves.items():
            spread = 4 * max(1 / move.numel(), 1 / 64) ** 0.5
            assert move.norm() == pytest.approx(learner.theta.norm().item(), rel=spread), name
    few = learner.projections["image"][[*moves].index("visual.class_embedding")]  # a gradient for all 23, of 64 rows
    torch.testing.assert_close(torch.autograd.functional.jacobian(few, learner.theta.detach()), dense(few))


def test_numbers_that_a_small_tensor_cannot_take_do_not_move_it() -> None:
    p = Fastfood(11, 6, norm=1.0, generator=torch.Generator().manual_seed(0), rows=6).double()
    assert p.n == 8
    assert not dense(p)[:, 8:].any()
    columns = dense(p)[:, :8]
    (gradient,) = torch.autograd.grad(p(theta := torch.ones(11).double().requires_grad_()).sum(), theta)
    assert torch.allclose(gradient[:8], columns.sum(0))
    assert not gradient[8:].any()


@pytest.mark.parametrize("scales", ["layer", pytest.param("tensor", marks=pytest.mark.slow)])
def test_scales_are_part_of_d_and_multiply_what_their_layer_moves_by(scales: str) -> None:
    clip, model = tiny.clip()
    images = Images(tiny.pixels(model, len(LABELS)))
    learner = IntrinsicDimension(clip, CLASSES, dimension=110, projection="said", scales=scales).double()
    names = [name for tower in ("image", "text") for name in learner.frozen(tower)]
    m = 2 * (3 + 1) if scales == "layer" else len(names)  # three blocks in each tower, and what is around them
    assert {name: len(p) for name, p in learner.named_parameters()} == {"theta": 110 - m, "scales": m}
    assert (learner.n_trained, set(learner.state_dict())) == (110, {"theta", "scales"})
    torch.testing.assert_close(evaluate(learner, images), evaluate(Learner(clip, CLASSES), images), rtol=1e-12, atol=0)

    plain = IntrinsicDimension(clip, CLASSES, dimension=110 - m, projection="aghajanyan").double()
    plain.theta.data = learner.theta.data = torch.linspace(-1, 1, 110 - m).double()
    learner.scales.data = torch.linspace(0.5, 2, m).double()
    whole = {
        name: t - learner.frozen(tower)[name] for tower in learner.towers for name, t in plain.changed(tower).items()
    }
    moved = {
        name: t - learner.frozen(tower)[name] for tower in learner.towers for name, t in learner.changed(tower).items()
    }
    factors = {name: (moved[name].norm() / whole[name].norm()).item() for name in names}
    for name in names:
        assert torch.allclose(moved[name], factors[name] * whole[name], atol=1e-12)
    assert sorted({round(factor, 9) for factor in factors.values()}) == pytest.approx(learner.scales.tolist(), abs=1e-9)
    if scales == "layer":
        second = {round(f, 9) for name, f in factors.items() if name.startswith("visual.transformer.resblocks.1.")}
        rest = {round(f, 9) for name, f in factors.items() if name.startswith("visual.") and "blocks" not in name}
        assert (len(second), len(rest), len(second | rest)) == (1, 1, 2)


def test_the_step_among_the_weights_is_as_long_with_each_projection() -> None:
    clip, _ = tiny.clip("vit", torch.float32)
    for projection in PROJECTIONS:
        learner = IntrinsicDimension(clip, CLASSES, dimension=30, projection=projection)
        (group,) = learner.param_groups(Fit(lr=3.0, epochs=1))
        assert {id(p) for p in group["params"]} == {id(p) for p in learner.parameters()}
        frozen = {name: t for tower in ("image", "text") for name, t in learner.frozen(tower).items()}
        learner.theta.data = group["lr"] * torch.ones(len(learner.theta))  # a step of Adam
        with torch.no_grad():
            changed = {name: t for tower in ("image", "text") for name, t in learner.changed(tower).items()}
        length = torch.stack([(t - frozen[name]).square().sum() for name, t in changed.items()]).sum().sqrt()
        assert length.item() == pytest.approx(3.0, rel=0.15), projection


def test_fewer_numbers_than_scales_are_refused() -> None:
    clip, _ = tiny.clip("vit", torch.float32)
    with pytest.raises(UserError, match=r"dimension is 8.*said.*8.*allowed is 9 to"):
        IntrinsicDimension(clip, CLASSES, dimension=8, projection="said")
    assert len(IntrinsicDimension(clip, CLASSES, dimension=9, projection="said").theta) == 1


# backbones in 4 bits

NF4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
       -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
       0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]  # fmt: skip
"""The 16 values of Dettmers et al., 2023, appendix E."""


def nearest(matrix: Tensor) -> Tensor:
    """A matrix rounded to NF4 in blocks of 64, the scales as they are."""
    blocks = matrix.reshape(-1, 64)
    scale = blocks.abs().amax(1, keepdim=True)
    table = torch.tensor(NF4)
    return (table[(blocks / scale - table[:, None, None]).abs().argmin(0)] * scale).reshape(matrix.shape)


def test_dequantisation_error_is_that_of_the_paper_s_code() -> None:
    matrix = torch.randn(96, 128, generator=torch.Generator().manual_seed(0)) * 0.02
    quantized, error = quantize({"w": matrix}, "nf4")
    tables = 4 * (16 + 256)
    plain = quantized["w"].plain()
    assert error == pytest.approx(((plain - matrix).norm() / matrix.norm()).item(), rel=1e-5)
    assert (plain - nearest(matrix)).norm() < 0.02 * matrix.norm()  # quantising the scales, too, costs little
    assert 0.08 < error < 0.11
    assert quantized["w"].stored() < matrix.nbytes / 7 + tables


def test_a_product_with_a_matrix_in_4_bits() -> None:
    w = quantize({"w": torch.randn(96, 32)}, "nf4")[0]["w"]
    assert isinstance(w, Tensor)
    assert (w.shape, w.dtype, len(w), w.requires_grad) == ((96, 32), torch.float32, 96, False)
    x, bias = torch.randn(5, 32, requires_grad=True), torch.randn(96)
    (gradient,) = torch.autograd.grad(F.linear(x, w, bias).square().sum(), x)
    (expected,) = torch.autograd.grad(F.linear(x, w.plain(), bias).square().sum(), x)
    assert torch.allclose(gradient, expected)
    assert isinstance(w[32:], Quantized)
    assert torch.equal(F.linear(x, w[32:], bias[32:]), F.linear(x, w.plain()[32:], bias[32:]))
    assert torch.equal(w + 1, w.plain() + 1)
    for outside in (False, True):  # the backward pass within autocast, and after it
        x.grad = None
        with torch.autocast("cpu", torch.bfloat16):
            y = F.linear(x, w, bias)
            if not outside:
                y.float().square().sum().backward()
        if outside:
            y.float().square().sum().backward()
        assert y.dtype == torch.bfloat16
        assert (x.grad - expected).norm() < 0.02 * expected.norm()


def quantized() -> tuple[Clip, Clip]:
    """A small model in 4 bits, and the same with the dequantised matrices as its own."""
    clip = tiny.clip("vit", torch.float32)[0].quantized("nf4")
    assert len(clip.weights.replaced) == 2 * 3 * 4  # matrices: both towers, layers, those of a block
    plain = {name: w.plain() for name, w in clip.weights.replaced.items()}
    return clip, tiny.clip("vit", torch.float32)[0].with_weights(plain)


def lora(clip: Clip) -> LoRA:
    torch.manual_seed(0)
    learner = LoRA(clip, CLASSES, sites=ALL_SITES, rank=2)
    for p in learner.parameters():
        p.data.normal_(0, 0.05)
    return learner


def test_qlora_is_lora_on_the_dequantised_weights() -> None:
    (four, full), images = quantized(), Images(torch.randn(len(LABELS), 3, 32, 32))
    quantized_lora, plain = lora(four), lora(full)
    assert torch.allclose(evaluate(quantized_lora, images), evaluate(plain, images), atol=1e-4)
    for (name, a), b in zip(gradients(quantized_lora, images).items(), gradients(plain, images).values(), strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm(), name
    assert torch.allclose(
        evaluate(Learner(quantized_lora.merged(), CLASSES), images), evaluate(quantized_lora, images), atol=1e-4
    )


def test_a_backbone_in_4_bits_is_small_at_rest_and_in_training() -> None:
    whole = tiny.clip("vit", torch.float32)[0]
    before = whole.n_bytes
    blocks = [*whole.image.blocks, *whole.text.blocks]
    sizes = {m.name: whole.weights.tensor(m.name).nbytes for block in blocks for m in block.matrices.values()}
    clip = whole.quantized("nf4")
    left = before - sum(sizes.values())
    stored = sum(w.stored() for w in clip.weights.replaced.values())
    assert clip.n_bytes == left + stored
    assert stored < sum(sizes.values()) / 4  # tables included, which these small matrices do not outweigh
    assert 0.08 < clip.quantization_error < 0.11
    assert clip.to("cpu").quantization_error == clip.quantization_error

    matrices = {tuple(w.shape) for w in clip.weights.replaced.values()}
    matrices |= {shape[::-1] for shape in matrices}
    for model, expected in ((clip, False), (tiny.clip("vit", torch.float32)[0], True)):
        saved: list[tuple[int, ...]] = []
        with saved_tensors_hooks(lambda t, saved=saved: (saved.append(tuple(t.shape)), t)[1], lambda t: t):
            lora(model).loss(Images(torch.randn(len(LABELS), 3, 32, 32)), LABELS)[0].backward()
        assert bool(matrices & set(saved)) == expected


def test_without_bitsandbytes_it_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"backbone\.quantize needs bitsandbytes .*: pip install"):
        tiny.clip("vit", torch.float32)[0].quantized("nf4")


@pytest.mark.slow
def test_a_run_in_4_bits_says_so_in_its_record(results: Path) -> None:
    common = ["protocol=few_shot", "fit.epochs=1", "shots=2"]
    succeed(sweep.main, [*TINY, "method=qlora", "name=four", *common])
    succeed(sweep.main, [*TINY, "method=qlora", "backbone.quantize=null", "name=full", *common])
    records = find_records([results])
    by_name = {record.learner: record for record in records}
    zero_shot = next(record for record in records if record.method == "zero_shot")
    four, full = by_name["qlora@four"], by_name["qlora@full"]
    assert 0.08 < four.cost["quantization_error"] < 0.11
    assert full.cost["quantization_error"] is None
    assert four.cost["backbone_bytes"] < full.cost["backbone_bytes"] - 1e6
    assert four.config["backbone"]["quantize"] == "nf4"
    assert four.config_hash != full.config_hash
    assert four.cost["mergeable"] is True
    assert zero_shot.cost["mergeable"] is None
    assert four.cost["steps"] == 1
    assert four.cost["seconds_per_step"] == four.cost["train_seconds"]
    assert four.cost["flops_per_image"] > four.cost["flops_per_image_frozen"] > 0
    assert zero_shot.cost["flops_per_image"] == four.cost["flops_per_image_frozen"]


# the linear probe


def separable(n_classes: int, *, seed: int = 0) -> tuple[Any, Any]:
    """Training and validation features of overlapping classes, as batches."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(n_classes, 24))

    def draw(n: int) -> list[tuple[Images, Tensor]]:
        labels = np.tile(np.arange(n_classes), n)
        features = torch.from_numpy(centres[labels] + 2 * generator.normal(size=(len(labels), 24))).float()
        parts = zip(features.split(5), torch.from_numpy(labels).split(5), strict=True)
        return [(Images(features=part), of_part) for part, of_part in parts]

    return draw(8), draw(4)


@pytest.mark.parametrize("n_classes", [2, 4])
def test_the_probe_is_scikit_learn_s_with_c_found_as_in_coop_s_protocol(n_classes: int) -> None:
    clip, _ = tiny.clip("vit", torch.float32)
    train, val = separable(n_classes)
    learner = LinearProbe(clip, [f"class {i}" for i in range(n_classes)])
    learner.prepare(train, val)

    x, y = torch.cat([i.features for i, _ in train]).double().numpy(), torch.cat([t for _, t in train]).numpy()
    x_val, y_val = torch.cat([i.features for i, _ in val]).double().numpy(), torch.cat([t for _, t in val]).numpy()

    def score(log_c: float) -> float:
        return LogisticRegression(C=10**log_c, max_iter=1000).fit(x, y).score(x_val, y_val)

    grid = [6.0, 4.0, 2.0, 0.0, -2.0, -4.0, -6.0]
    peak = grid[int(np.argmax([score(c) for c in grid]))]
    ends = [peak - 1, peak + 1]
    for _ in range(8):
        better = int(score(ends[0]) < score(ends[1]))
        chosen = ends[better]
        ends[1 - better] = sum(ends) / 2
    assert learner.c == pytest.approx(10**chosen)
    model = LogisticRegression(C=10**chosen, max_iter=1000).fit(x, y)
    logits = evaluate(learner, Images(features=torch.from_numpy(x_val).float())).double().softmax(-1)
    assert np.allclose(logits.numpy(), model.predict_proba(x_val), atol=1e-4)
    assert (logits.argmax(-1).numpy() == model.predict(x_val)).all()


def test_the_probe_says_what_it_lacks() -> None:
    clip, _ = tiny.clip("vit", torch.float32)
    train, val = separable(3)
    with pytest.raises(UserError, match="chooses C on validation images"):
        LinearProbe(clip, CLASSES).prepare(train, None)
    with pytest.raises(UserError, match=r"needs a training image of each class, but of 1 of 4 there is none \(dog\)"):
        LinearProbe(clip, [*CLASSES, "dog"]).prepare(train, val)


def test_the_probe_runs_without_a_step(results: Path) -> None:
    succeed(sweep.main, [*TINY, "method=linear_probe", "protocol=few_shot", "shots=2"])
    record = next(record for record in find_records([results]) if record.method == "linear_probe")
    assert record.curve == []
    assert (record.cost["steps"], record.cost["seconds_per_step"]) == (0, None)
    assert record.bank["test_features"]
    assert record.cost["flops_classes"] == 0


# costs


def test_flops_are_those_counted_by_hand() -> None:
    clip, _ = tiny.clip("vit", torch.float32)
    n, d, e = 17, 48, 24  # 16 patches and the class token; width; embedding
    images = Images(torch.zeros(1, 3, 32, 32))
    # q, k, v and o, twice 4 d in the MLP; scores and sums of attention; patches; the projection of the class token
    block = 2 * n * (4 + 8) * d * d + 2 * 2 * n * n * d
    whole = 3 * block + 2 * 16 * (3 * 64) * d + 2 * d * e
    skipped = (
        2 * (n - 1) * (2 + 8) * d * d + 2 * 2 * (n - 1) * n * d
    )  # of the last block, if the class token alone is read
    assert count_flops(clip.image, images) in (whole, whole - skipped)


def test_costs_of_use_stand_beside_those_of_the_frozen_model() -> None:
    clip, _ = tiny.clip("vit", torch.float32)

    def costs(learner: Learner) -> dict[str, int | float]:
        return costs_of_use(learner, autocast=lambda: torch.autocast("cpu", enabled=False))

    frozen = costs(Learner(clip, CLASSES))
    assert frozen["flops_per_image"] == frozen["flops_per_image_frozen"] > 0
    assert frozen["flops_classes"] == frozen["flops_classes_frozen"] > 0
    assert frozen["seconds_per_image"] > 0
    for kind in (BitFit, FullFinetune, IntrinsicDimension):  # the same model with other numbers
        assert {k: v for k, v in costs(kind(clip, CLASSES)).items() if "flops" in k} == {
            k: v for k, v in frozen.items() if "flops" in k
        }
    both = HardPrompts(clip, CLASSES, templates=["a {}.", "the {}."])
    for _ in range(2):  # what a learner keeps of its classes is counted all the same
        assert costs(both)["flops_classes"] > 1.5 * frozen["flops_classes"]
    adapted = LoRA(clip, CLASSES)
    costs(adapted)
    assert all(p.requires_grad for p in adapted.parameters())
    image = costs(LoRA(clip, CLASSES, towers="image", sites=["v"], rank=2))
    assert image["flops_per_image"] - frozen["flops_per_image"] == 3 * 17 * 2 * 2 * (48 + 48)
    assert image["flops_classes"] == frozen["flops_classes"]
