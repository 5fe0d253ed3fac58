"""timm's vision transformers as frozen towers without text: names, files of weights, folders, and their images."""

import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import timm
import torch
from timm.data import resolve_data_config
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor

from vlprompt.errors import UserError, first_names, unknown
from vlprompt.textfiles import read_json
from vlprompt.towers.block import Weights
from vlprompt.towers.image import timm_vit
from vlprompt.towers.preprocess import Preprocess, from_timm, preprocess_of
from vlprompt.towers.weights import VIT, check_finite, fetch, fit, is_archive_of_numpy, read_state, reason_of

PREFIX = "timm:"
CONFIG = "config.json"
FILES = ("model.safetensors", "pytorch_model.bin")  # the weights in a folder: the first that is there
HEADS = ("head.", "head_dist.", "pre_logits.")  # classifiers, of whatever classes
ARGUMENTS = frozenset(inspect.signature(VisionTransformer).parameters) - {"num_classes"}
WIDTHS = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge", 1408: "giant", 1664: "gigantic"}
MODULES = ("vision_transformer", "deit", "vision_transformer_hybrid")


def is_timm(model: str) -> bool:
    """Whether a name is that of a model of timm: `timm:NAME`, or NAME where open_clip has no model of this name."""
    return model.startswith(PREFIX) or (timm.is_model(model) and model not in open_clip.list_models())


def is_timm_folder(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def full_name(model: str) -> str:
    """One spelling of a model that `is_timm`."""
    return PREFIX + model.removeprefix(PREFIX)


def weights_in(folder: Path) -> Path:
    """The file of weights in timm's folder; the first name where there is none."""
    return next((folder / name for name in FILES if (folder / name).is_file()), folder / FILES[0])


def published_preprocess(model: str) -> Preprocess:
    """How images are prepared for a model by its name, without building it. Raises: UserError as `make`."""
    check_name(name := model.removeprefix(PREFIX))
    published = timm.get_pretrained_cfg(name)
    return preprocess_of(data_settings(name, published.to_dict() if published else {}))


def data_settings(name: str, published: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a model's images by timm's own rules, with its defaults where nothing was published."""
    return from_timm(resolve_data_config(pretrained_cfg={"architecture": name, **published}))


def make(
    model: str, weights: str, *, seed: int, pretrained: str, random: str, size: int | None = None
) -> tuple[VisionTransformer, Preprocess]:
    """A model without its classifier: the features are what that would read; and how its images are prepared.

    `model` is a name, with its tag where wanted, or a folder in timm's form on the hub. `weights` is `pretrained`,
    `random` or the path of a file. `size` in pixels: other than the model's own, positions are resampled for it.

    Raises:
        UserError: an unknown name or tag, a kind of model that is not supported, weights that do not fit or cannot be
            fetched or read.
    """
    folder = Path(model) if Path(model).is_dir() else None
    name, more, images = read_folder(folder) if folder else (model.removeprefix(PREFIX), {}, {})
    check_name(name)
    more |= {"img_size": size} if size else {}
    patch = check_kind(name, more)
    if size and size % patch:
        raise UserError(
            f"backbone.images.size is {size}, allowed for {name} are multiples of {patch}, its patches' size"
        )
    from_hub = weights == pretrained and not folder
    if from_hub and not timm.is_model_pretrained(name):
        raise UserError(f"timm has no weights of {name}: give a file with backbone.weights=PATH")
    net = fetch(lambda: build(name, seed, pretrained=from_hub, **more), name)
    if from_hub:
        check_finite(net.state_dict(), name)
    elif weights != random:
        file = weights_in(folder) if folder and weights == pretrained else Path(weights)
        if file.is_dir():
            raise UserError(f"backbone.weights is the folder {file}: give it as backbone.model={file}")
        if not file.is_file() and folder:
            raise UserError(f"{file} is missing: put the weights there, or use backbone.weights={random}")
        if not file.is_file():
            raise unknown("weights", weights, [pretrained, random], do="The path of a file is allowed too.")
        load(net, file, name)
    settings = data_settings(name, {**net.pretrained_cfg, **images})
    return net, preprocess_of({**settings, "size": net.patch_embed.img_size})


def build(name: str, seed: int, *, pretrained: bool = False, **arguments: Any) -> Any:
    """timm's model, whose random weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return timm.create_model(name, pretrained=pretrained, num_classes=0, **arguments).eval()


def check_name(name: str) -> None:
    """Raises: UserError that lists names, or tags, near the one that is not known."""
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise unknown("timm model", name, near(architecture), do="timm.list_models('vit_*') lists more.")
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise unknown(f"tag of timm's {architecture}", tag, tags)


def near(name: str) -> list[str]:
    """At most twelve names of timm's ViTs that begin as `name` does, as far as any do."""
    names = [known for module in MODULES for known in timm.list_models(module=module)]
    for end in range(len(name), 2, -1):
        if some := [known for known in names if known.startswith(name[:end])]:
            return some[:12]
    return [known for known in names if known.endswith("_patch16_224")][:12]


def check_kind(name: str, arguments: Mapping[str, Any]) -> int:
    """The size of a model's patches. It is built without memory, so that what cannot run here is not fetched.

    Raises: UserError.
    """
    try:
        with torch.device("meta"):
            net = build(name, 0, **arguments)
    except Exception as error:  # timm's, of as many kinds as it has arguments
        raise UserError(f"timm's {name} cannot be built ({reason_of(error)}): choose another model or size") from None
    return timm_vit(Weights(net)).patch_size


def load(net: VisionTransformer, file: Path, name: str) -> None:
    """Read weights into a model: a state dict under timm's names, or the NumPy archive of the first ViTs.

    A classifier is left out; positions of another grid are resampled.

    Raises:
        UserError: weights of something else; it names the first tensors that do not fit, and models that they fit.
    """
    if is_archive_of_numpy(file):
        load_archive(net, file, name)
        return
    state, _ = read_state(file)
    if any(key.startswith("visual.") for key in state):
        raise UserError(
            f"{file} holds the weights of a CLIP, not of {name}, which has no text tower: give them to a CLIP, as in "
            f"backbone=vit_b16 backbone.weights={file}"
        )
    if any("embeddings." in key for key in state):
        raise UserError(
            f"{file} has the names of a model of Transformers ('{next(iter(state))}'), needed are timm's: get the "
            f"weights in timm's form, such as those of timm/{name} on the hub"
        )
    state = {key: tensor for key, tensor in state.items() if not key.startswith(HEADS)}
    adapted = adapt(net, state)
    others = [other for other in fitting(state) if other != name]
    do = f"they may be those of {first_names(others, 5)} (backbone.model)" if others else ""
    fit(net, adapted, str(file), name, do=do)


def adapt(net: VisionTransformer, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The state dict as timm reads it: earlier names changed, positions resampled. Patches of another size are left."""
    patches = state.get("patch_embed.proj.weight")
    try:
        if patches is None or patches.shape == net.get_parameter("patch_embed.proj.weight").shape:
            return checkpoint_filter_fn(dict(state), net, adapt_layer_scale=True)
    except (RuntimeError, ValueError, AttributeError):  # of a tensor whose shape nothing could be made of
        pass
    return state


def fitting(state: Mapping[str, Tensor]) -> list[str]:
    """Names of timm's ViTs of this width, patch size and number of patches, as far as their names tell."""
    patches, positions = (state.get(name, torch.empty(0)).shape for name in (VIT, "pos_embed"))
    if len(patches) != 4 or len(positions) != 3 or patches[0] not in WIDTHS:
        return []
    side = int(positions[1] ** 0.5) * patches[-1]  # the prefix tokens make no full row more
    names = [
        n for module in MODULES for n in timm.list_models(f"*{WIDTHS[patches[0]]}_patch{patches[-1]}_*", module=module)
    ]
    return [name for name in names if str(side) in name.split("_")] or names


def load_archive(net: VisionTransformer, file: Path, name: str) -> None:
    """Read the NumPy archive of Google's ViTs in JAX (such as ViT-B_16.npz), by timm's own reader."""
    try:
        with np.load(file, allow_pickle=False) as archive:
            blocks = {match[1] for key in archive.files if (match := re.search(r"encoderblock_(\d+)/", key))}
            kernel = next((archive[key] for key in archive.files if key.endswith("embedding/kernel")), None)
        patch = net.patch_embed.proj.kernel_size
        if kernel is not None and kernel.shape[:2] != patch:
            raise UserError(f"{file} has patches of {list(kernel.shape[:2])} pixels, {name} of {list(patch)}: choose "
                            "the architecture that it was made with (backbone.model)")  # fmt: skip
        if blocks and len(blocks) != len(net.blocks):
            raise UserError(f"{file} has {len(blocks)} blocks, {name} has {len(net.blocks)}: choose the architecture "
                            "that it was made with (backbone.model)")  # fmt: skip
        net.load_pretrained(str(file))
    except UserError:
        raise
    except Exception as error:  # whatever keys and shapes make timm's reader raise
        raise UserError(
            f"{file} cannot be read as a NumPy archive of {name} ({reason_of(error)}): choose the architecture that it "
            "was made with (backbone.model), or give safetensors or a state dict of torch"
        ) from None
    check_finite(net.state_dict(), str(file))


def read_folder(folder: Path) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """The architecture of a model in timm's folder, its arguments, and the settings of its images.

    Raises:
        UserError: a configuration of something else, or arguments that no vision transformer has.
    """
    file, content = folder / CONFIG, read_json(folder / CONFIG)
    name = content.get("architecture") if isinstance(content, dict) else None
    if not isinstance(name, str):
        raise UserError(
            f"{file} names no 'architecture' of timm: a folder of timm's has one (Transformers' has others and is not "
            "supported); give a file with backbone=timm_vit backbone.weights=PATH"
        )
    arguments, images = content.get("model_args", {}), content.get("pretrained_cfg", content)
    if not isinstance(arguments, dict) or not isinstance(images, dict):
        raise UserError(f"{file} cannot be used: model_args and pretrained_cfg are objects; correct it")
    if wrong := set(arguments) - ARGUMENTS - {"num_classes"}:
        raise UserError(f"model_args in {file} has '{min(wrong)}', allowed are arguments of timm's VisionTransformer")
    shown = {key: images[key] for key in ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode") if
             images.get(key) is not None}  # fmt: skip
    if not isinstance(shown.get("input_size", []), Sequence):
        raise UserError(f"input_size in {file} is {shown['input_size']}, allowed are channels, height and width")
    return name, {key: value for key, value in arguments.items() if key != "num_classes"}, shown
