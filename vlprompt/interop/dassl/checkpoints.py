"""From the tensors of a Dassl checkpoint to a learner folder of this package."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlprompt.errors import UserError, unknown
from vlprompt.interop.dassl.arguments import Arguments, derive_arguments, expected_shapes
from vlprompt.interop.dassl.facts import TRAINERS, Facts
from vlprompt.interop.dassl.loading import Checkpoint, as_float32
from vlprompt.interop.dassl.names import METHODS, ORIGINALS, split_names
from vlprompt.learners.cocoop import CoCoOp
from vlprompt.learners.coop import CoOp
from vlprompt.learners.ivlp import IVLP
from vlprompt.learners.maple import MaPLe
from vlprompt.learners.prograd import ProGrad
from vlprompt.learners.vpt import VPT
from vlprompt.results import learner_files
from vlprompt.towers.geometry import Geometry

LEARNERS = {"CoOp": CoOp, "ProGrad": ProGrad, "CoCoOp": CoCoOp, "MaPLe": MaPLe, "IVLP": IVLP, "VPT": VPT}


@dataclass(frozen=True)
class Trained:
    """A learner read from a checkpoint: its method, its constructor's arguments, its tensors under our names."""

    method: str
    original: str  # whose form it has
    form: str  # who made it
    arguments: Arguments
    tensors: dict[str, Tensor]
    n_classes: int | None  # it was trained on, where the file says so
    notes: list[str]


def convert(
    checkpoint: Checkpoint, path: Path, *, method: str | None, facts: Facts, template: str | None = None
) -> Trained:
    """Recognise the method, rename its tensors and derive its arguments from their shapes.

    `facts` are what a log, the path or the user say: initial phrase, position, trainer. `template` is that of ProGrad
    on the data set that was trained on, where it is known.

    Raises:
        UserError: tensors of no method known here, of several, or that do not fit each other.
    """
    names, leftovers = split_names(checkpoint.tensors)
    original = recognise(names, path, method=method, trainer=facts.trainer, whole=checkpoint.whole)
    tensors = rename(checkpoint, names, original, path)
    suffix = checkpoint.tensors.get("prompt_learner.token_suffix")
    arguments, notes = derive_arguments(original, tensors, suffix, facts, path, template)
    check_shapes(tensors, expected_shapes(original, arguments, tensors), original, path)
    per_class = [tensor for tensor in (tensors.get("context"), suffix) if tensor is not None and tensor.ndim == 3]
    n_classes = len(per_class[0]) if per_class else None
    teacher = any(name.startswith("prompt_learner.ZS_image_encoder.") for name in checkpoint.tensors)
    form = original
    if facts.trainer in ORIGINALS[original].also:
        form = facts.trainer
    elif leftovers or teacher:
        form = "KgCoOp" if leftovers else "PromptSRC"
    return Trained(_our_method(original, arguments), original, form, arguments, tensors, n_classes, notes)


def recognise(names: set[str], path: Path, *, method: str | None, trainer: str | None, whole: bool) -> str:
    """The original whose tensors these are; `trainer` decides where several have such.

    Raises:
        UserError: none, several, or another one than `method`.
    """
    asked = "ProGrad" in (trainer, METHODS.get(method or ""))  # else its context is one of CoOp
    fitting = [name for name, original in ORIGINALS.items() if original.fits(names) and (asked or name != "ProGrad")]
    if "CoOp" in fitting and not whole:  # IVLP's checkpoints always hold the whole model
        fitting.remove("IVLP")
    if method is not None:
        if method not in METHODS:
            raise unknown("method to import", method, METHODS)
        if METHODS[method] in fitting:
            return METHODS[method]
    importable = f"these are {', '.join(METHODS)}, KgCoOp as coop and PromptSRC as ivlp"
    if not fitting:
        strange = sorted(name for name in names if all(o.ours(name) is None for o in ORIGINALS.values()))
        what = f"'{(strange or sorted(names) or ['no tensor at all'])[0][:100]}'"
        raise UserError(
            f"{path} holds the tensors of no method that can be imported ({what} is among them): {importable}"
        )
    if method is None and trainer in TRAINERS and all(trainer not in (o, *ORIGINALS[o].also) for o in ORIGINALS):
        raise UserError(f"{path} is of {trainer}, by its folder or log, which cannot be imported: {importable}")
    if method is None and (named := [o for o in fitting if trainer in (o, *ORIGINALS[o].also)]):
        return named[0]
    possible = [ours for ours, name in METHODS.items() if name in fitting]
    if method is not None:
        raise UserError(f"{path} is no checkpoint of {method}: its tensors are those of {' or '.join(possible)}")
    if len(fitting) > 1:
        raise UserError(
            f"{path} holds a context and nothing else that was trained, so it is of {' or '.join(possible)}: say which "
            f"with --method, as in --method {possible[0]}"
        )
    return fitting[0]


def rename(checkpoint: Checkpoint, names: set[str], original: str, path: Path) -> dict[str, Tensor]:
    """The trained tensors in float32 under our names, numbered parts stacked."""
    tensors: dict[str, Tensor] = {}
    parts: dict[str, dict[int, Tensor]] = defaultdict(dict)
    for name in sorted(names):
        ours = ORIGINALS[original].ours(name)
        assert ours is not None
        tensor = as_float32(name, checkpoint.tensors[name], path)
        part = re.fullmatch(r"(\w+)\[(\d+)\]", ours)
        group: dict[Any, Tensor] = parts[part[1]] if part else tensors
        if (key := int(part[2]) if part else ours) in group:
            raise UserError(f"{path} holds '{name}' twice: the file is damaged")
        group[key] = tensor
    for name, layers in parts.items():
        shapes = {layer.shape for layer in layers.values()}
        if sorted(layers) != list(range(len(layers))) or len(shapes) > 1:
            raise UserError(f"{path} has prompts for the layers {sorted(layers)}, of {len(shapes)} shapes: one is lost")
        tensors[name] = torch.stack([layers[layer] for layer in range(len(layers))])
    return tensors


def check_shapes(tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], kind: str, path: Path) -> None:
    """Compare the tensors with the shapes that they should have."""
    wrong = [f"'{name}' is missing" for name in expected if name not in tensors]
    wrong += [f"'{name}' belongs to no such method" for name in tensors if name not in expected]
    for name in expected.keys() & tensors.keys():
        if (got := tuple(tensors[name].shape)) != expected[name]:
            wrong.append(f"'{name}' is {list(got)}, needed {list(expected[name])}")
    if wrong:
        raise UserError(f"the tensors of {path} do not make a {kind}: {'; '.join(sorted(wrong)[:3])}")


def _our_method(original: str, arguments: Arguments) -> str:
    if original == "IVLP" and arguments["image_depth"] == 0:
        return "language_prompts"
    if original == "VPT":
        return "vpt_shallow" if arguments["depth"] == 1 else "vpt_deep"
    return next(ours for ours, name in METHODS.items() if name == original)


def check_backbone(trained: Trained, geometry: Geometry, backbone: str, path: Path) -> None:
    """Compare widths and depths with those of a backbone.

    Raises:
        UserError: naming the first that differs.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in trained.tensors.items()}
    text, image = shapes.get("context"), shapes.get("tokens", shapes.get("image_tokens.0"))
    projected, shifted = shapes.get("coupling.0.weight"), shapes.get("meta_net.linear1.weight")
    depth: int = trained.arguments.get("depth", 0)
    text_depth = depth if text else 0
    image_depth: int = trained.arguments.get("image_depth", 0 if text and not projected else depth)
    image_width = image[-1] if image else projected[0] if projected else None
    if image_width is not None and geometry.image_width is None:
        raise UserError(f"{path} prompts the blocks of an image tower, and {backbone} has none: give its --backbone")
    for what, width, needed in (
        ("text", text[-1] if text else None, geometry.text_width),
        ("image", image_width, geometry.image_width),
        ("embedding", shifted[1] if shifted else None, geometry.embed_dim),
    ):
        if width not in (None, needed):
            raise UserError(
                f"{path} was trained for {what} width {width}, {backbone} has {needed}: give its --backbone"
            )
    for what, n_layers, n_blocks in (
        ("text", text_depth, geometry.text_depth or 0),
        ("image", image_depth, geometry.image_depth or 0),
    ):
        if n_layers > n_blocks:
            raise UserError(
                f"{path} prompts {n_layers} layers of the {what} tower, {backbone} has {n_blocks}: give its --backbone"
            )


def write_learner(
    trained: Trained,
    folder: Path,
    *,
    origin: Mapping[str, Any],
    backbone: Mapping[str, str],
    geometry: Geometry | None,
    classes: Sequence[str],
    about: Mapping[str, Any],
    force: bool,
) -> None:
    """Write a learner folder. `about`: dataset, protocol and split_hash, None where not known.

    Raises:
        UserError: the folder holds something already, or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()) and not (force and (folder / learner_files.CONFIG).is_file()):
            holds = (
                "a learner: --force replaces it"
                if (folder / learner_files.CONFIG).is_file()
                else "files: choose another"
            )
            raise UserError(f"{folder} holds {holds}")
        kind = LEARNERS[trained.original]
        config = {
            "method": trained.method,
            "target": f"{kind.__module__}.{kind.__name__}",
            "arguments": trained.arguments,
            "backbone": dict(backbone),
            **about,
            "classes": list(classes),
            "preprocess": asdict(geometry.preprocess) if geometry else None,
            "origin": dict(origin),
        }
        learner_files.write(folder, trained.tensors, config)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}") from None
