"""Adapters, prefix tuning, LLaMA-Adapter and QLoRA against public originals: see fixtures/originals/tiny_clip."""

import importlib.util
import re
from copy import deepcopy
from pathlib import Path

import pytest
import safetensors.torch
import torch
from test_parity import FIXTURES, load_tiny, near

from vlprompt.errors import UserError
from vlprompt.learners.adapter import ACTIVATIONS, Adapter
from vlprompt.learners.llama_adapter import LlamaAdapter
from vlprompt.learners.lora import LoRA
from vlprompt.learners.prefix_tuning import PrefixTuning
from vlprompt.towers import Images
from vlprompt.towers.block import Weights
from vlprompt.towers.clip import build
from vlprompt.towers.quantization import quantize

FOLDER = Path(__file__).parent / "fixtures" / "originals" / "tiny_clip"
STRINGS = ["a photo of a cat.", "golden retriever", "hot air balloon seen from far away"]
TOWERS = {"image": "vision", "text": "text"}
SITES = {"attention": "attn", "output": "mlp"}
MAPS = {"q_proj": "q", "k_proj": "k", "out_proj": "o", "fc1": "fc1", "fc2": "fc2"}


def of_adapters(tensors, tower):
    """AdapterHub's names."""
    pattern = rf"{TOWERS[tower]}\.(\d)\.(\w+)_adapters\.adapter_(down|up)(?:\.0)?\.(weight|bias)"
    renamed = {}
    for name, tensor in tensors.items():
        if match := re.fullmatch(pattern, name):
            layer, site, linear, kind = match.groups()
            renamed[f"layers.{tower}.{layer}.{SITES[site]}.{linear}.{kind}"] = tensor
    return renamed


def of_prefixes(tensors, tower):
    """AdapterHub's names, and the form in which it holds keys and values that are learned themselves."""
    names = {"wte.weight": "embedding", "control_trans": "pairs"} | {
        f"control_trans.{i}.{kind}": f"network.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")
    }
    given = {name.removeprefix(f"{TOWERS[tower]}."): t for name, t in tensors.items() if name.startswith(TOWERS[tower])}
    renamed = {f"prefixes.{tower}.{ours}": given[theirs] for theirs, ours in names.items() if theirs in given}
    if pairs := [name for name in renamed if name.endswith("pairs")]:
        heads = {"image": 3, "text": 2}[tower]
        renamed[pairs[0]] = renamed[pairs[0]].view(-1, 2, 2, heads, 64).permute(1, 2, 3, 0, 4)
    return renamed


def of_llama(tensors, tower):
    """The authors' prompts and gates of one block each, or peft's, which has one gate for all heads."""
    at = sorted({name.split(".")[1] for name in tensors if name.startswith(tower)})
    tokens = torch.cat([tensors[f"{tower}.{layer}.prompt"] for layer in at])
    gates = torch.stack([tensors[f"{tower}.{layer}.gate"].flatten() for layer in at])
    return {f"prompted.{tower}.tokens": tokens, f"prompted.{tower}.gates": gates}


def of_lora(tensors, tower):
    """peft's names."""
    pattern = rf"{TOWERS[tower]}\.(\d)\.(?:self_attn|mlp)\.(\w+)\.lora_([AB])\.weight"
    renamed = {}
    for name, tensor in tensors.items():
        if match := re.fullmatch(pattern, name):
            layer, linear, matrix = match.groups()
            renamed[f"layers.{tower}.{layer}.{MAPS[linear]}.{matrix.lower()}"] = tensor
    return renamed


CASES = {
    "adapter/houlsby": (Adapter, of_adapters, {"sites": "attn_mlp", "activation": "swish"}),
    "adapter/houlsby_gelu": (Adapter, of_adapters, {"sites": "attn_mlp", "activation": "gelu"}),
    "adapter/pfeiffer": (Adapter, of_adapters, {"sites": "mlp", "activation": "relu", "reads": "sum"}),
    "prefix_tuning/network": (PrefixTuning, of_prefixes, {"n_tokens": 3, "reparameterise": True, "hidden": 2}),
    "prefix_tuning/direct": (PrefixTuning, of_prefixes, {"n_tokens": 2}),
    "llama_adapter/tanh": (LlamaAdapter, of_llama, {"n_tokens": 3, "depth": 2}),
    "llama_adapter/tanh_topmost": (LlamaAdapter, of_llama, {"n_tokens": 2, "depth": 1}),
    "llama_adapter/linear": (LlamaAdapter, of_llama, {"n_tokens": 3, "depth": 2, "gate": "linear"}),
    "qlora/all": (LoRA, of_lora, {"sites": ["q", "o", "fc1", "fc2"], "rank": 1, "alpha": 3.0}),
    "qlora/image": (LoRA, of_lora, {"sites": ["k", "o"], "rank": 2, "alpha": 3.0, "scaling": "alpha/sqrt(r)"}),
}


PAIRS = [(case, tower) for case in CASES for tower in TOWERS if (case, tower) != ("qlora/image", "text")]


@pytest.fixture(scope="module")
def clips():
    """The tiny CLIP's first two blocks, as they are and in 4 bits."""
    plain = load_tiny(FIXTURES, 2)
    copy = build(Weights(deepcopy(plain.weights.root)), name="tiny", preprocess=plain.preprocess, words=plain.words)
    return {"plain": plain, "nf4": copy.quantized("nf4") if importlib.util.find_spec("bitsandbytes") else None}


@pytest.mark.parametrize(("case", "tower"), PAIRS)
def test_features_and_gradients_are_the_originals(case, tower, clips):
    kind, renamed, options = CASES[case]
    method, setting = case.split("/")
    clip = clips["nf4" if method == "qlora" else "plain"]
    if clip is None:
        pytest.skip("needs bitsandbytes")
    inputs, tensors = (safetensors.torch.load_file(FOLDER / f"{name}.safetensors") for name in ("inputs", method))
    mine = {name.split("/")[1]: t.float() for name, t in tensors.items() if name.startswith(f"{setting}/")}
    start, gradients = (
        renamed({name.removeprefix(part): t for name, t in mine.items() if name.startswith(part)}, tower)
        for part in ("param.", "grad.")
    )
    if kind is Adapter:
        options = {**options, "bottleneck": len(next(t for name, t in start.items() if name.endswith("down.bias")))}
    learner = kind(clip, STRINGS, template="{}", towers=tower, **options)
    images = Images(inputs["images"].float())
    run = (lambda: learner.encode_images(images)) if tower == "image" else learner.encode_classes
    parameters = dict(learner.named_parameters())
    assert set(parameters) == set(start)
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(start[name])
    ours = run()
    near(ours, mine[f"{tower}_features"], 5e-6)
    (ours * inputs[f"{tower}_weights"].float()).sum().backward()
    for name, p in parameters.items():
        g = p.grad.sum(-1, keepdim=True) if gradients[name].shape != p.shape else p.grad  # one gate for all heads
        near(g, gradients[name], 2e-5)


NF4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
       -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
       0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]  # fmt: skip
"""The numbers of the data type: Dettmers et al., appendix E."""


def test_four_bits_where_the_last_block_is_not_full():
    pytest.importorskip("bitsandbytes")
    tensors = safetensors.torch.load_file(FOLDER / "qlora.safetensors")
    matrix = tensors["matrix"].float()
    assert matrix.numel() % 64
    quantized, error = quantize({"m": matrix}, "nf4")
    ours = quantized["m"].plain()
    assert torch.equal(ours, tensors["dequantized"])
    assert error == pytest.approx((torch.linalg.norm(ours - matrix) / torch.linalg.norm(matrix)).item())
    for block, given in zip(ours.flatten().split(64), matrix.flatten().split(64), strict=True):
        scale, top = block.abs().max().item(), given.abs().max().item()
        assert scale == pytest.approx(top, rel=0.02)  # quantised, too
        level = (block[:, None] / scale - torch.tensor(NF4)).abs()
        assert level.min(1).values.max() < 1e-6
        off = (given[:, None] / top - torch.tensor(NF4)).abs()
        chosen = off.take_along_dim(level.argmin(1, keepdim=True), 1)[:, 0]
        assert torch.all(chosen <= off.min(1).values + 1e-6)


def test_adapters_start_as_asked(clips):
    """As the authors' adapters do: both matrices from a normal distribution cut at twice its deviation, no biases."""
    drawn = Adapter(clips["plain"], STRINGS, bottleneck=64, std=0.001, sites="attn_mlp", activation="gelu_tanh")
    for name, p in drawn.named_parameters():
        if name.endswith("bias"):
            assert not p.any()
        else:
            assert p.abs().max() <= 0.002
            assert p.std().item() == pytest.approx(0.001 * 0.8796, rel=0.03)  # what the cut leaves of it
    plain = Adapter(clips["plain"], STRINGS, bottleneck=64, sites="attn_mlp")
    assert torch.equal(plain.encode_classes(), Adapter.neutral(clips["plain"], STRINGS, std=0.001).encode_classes())
    x = torch.linspace(-3, 3, 50)
    cubic = 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
    torch.testing.assert_close(ACTIVATIONS["gelu_tanh"](x), cubic)
    with pytest.raises(UserError, match=r"std=0\.0"):
        Adapter(clips["plain"], STRINGS, std=0.0)
