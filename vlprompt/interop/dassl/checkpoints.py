"""From the tensors of a Dassl checkpoint to a saved learner of this package."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vlprompt.errors import UserError, unknown
from vlprompt.interop.dassl.dassl import Facts
from vlprompt.interop.dassl.loading import Checkpoint, as_float32
from vlprompt.interop.dassl.names import METHODS, ORIGINALS, split_names
from vlprompt.interop.dassl.prompts import Arguments, derive_arguments, expected_shapes
from vlprompt.learners.cocoop import CoCoOp
from vlprompt.learners.coop import CoOp
from vlprompt.learners.ivlp import IVLP
from vlprompt.learners.maple import MaPLe
from vlprompt.learners.vpt import VPT
from vlprompt.results import learner_files as saved
from vlprompt.towers.geometry import Geometry

LEARNERS = {"CoOp": CoOp, "CoCoOp": CoCoOp, "MaPLe": MaPLe, "IVLP": IVLP, "VPT": VPT}


@dataclass(frozen=True)
class Trained:
    """A learner read from a checkpoint: its method and form, its constructor's arguments, its tensors in our names."""

    method: str
    original: str  # whose form it has
    form: str  # who made it
    arguments: Arguments
    tensors: dict[str, Tensor]
    n_classes: int | None  # it was trained on, where the file tells
    notes: list[str]


def convert(checkpoint: Checkpoint, path: Path, *, method: str | None, facts: Facts) -> Trained:
    """Recognise the method, rename its tensors and derive its arguments from their shapes.

    `facts` are what a log, the path or the user tell: initial phrase, position, trainer.

    Raises:
        UserError: tensors of no method known here, of several, or that do not fit each other.
    """
    names, leftovers = split_names(checkpoint.tensors)
    original = recognise(names, path, method=method, trainer=facts.trainer, whole=checkpoint.whole)
    tensors = rename(checkpoint, names, original, path)
    suffix = checkpoint.tensors.get("prompt_learner.token_suffix")
    arguments, notes = derive_arguments(original, tensors, suffix, facts, path)
    check_shapes(tensors, expected_shapes(original, arguments, tensors), original, path)
    own = tensors.get("context")
    n_classes = None if suffix is None or suffix.ndim != 3 else len(suffix)
    if own is not None and own.ndim == 3:
        n_classes = len(own)
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
    fitting = [name for name, original in ORIGINALS.items() if original.fits(names)]
    if fitting == ["CoOp", "IVLP"] and not whole:  # IVLP's checkpoints always hold the whole model
        fitting = ["CoOp"]
    if method is not None:
        if method not in METHODS:
            raise unknown("method to import", method, METHODS)
        if METHODS[method] in fitting:
            return METHODS[method]
    if not fitting:
        strange = sorted(name for name in names if all(o.ours(name) is None for o in ORIGINALS.values()))
        what = f"'{(strange or sorted(names) or ['no tensor at all'])[0][:100]}'"
        raise UserError(
            f"{path} holds the tensors of no method that can be imported ({what} is among them): these are "
            f"{', '.join(METHODS)}, KgCoOp as coop and PromptSRC as ivlp"
        )
    if method is None and (told := [o for o in fitting if trainer in (o, *ORIGINALS[o].also)]):
        return told[0]
    possible = [ours for ours, name in METHODS.items() if name in fitting]
    if method is not None:
        raise UserError(f"{path} is no checkpoint of {method}: its tensors are those of {' or '.join(possible)}")
    if len(fitting) > 1:
        raise UserError(
            f"{path} holds a context and nothing else that was trained, which can be {' or '.join(possible)}: tell it "
            f"apart with --method, as in --method {possible[0]}"
        )
    return fitting[0]


def rename(checkpoint: Checkpoint, names: set[str], original: str, path: Path) -> dict[str, Tensor]:
    """The trained tensors in float32 under our names, numbered parts put together."""
    tensors: dict[str, Tensor] = {}
    parts: dict[str, dict[int, Tensor]] = defaultdict(dict)
    for name in sorted(names):
        ours = ORIGINALS[original].ours(name)
        assert ours is not None
        tensor = as_float32(name, checkpoint.tensors[name], path)
        part = re.fullmatch(r"(\w+)\[(\d+)\]", ours)
        kept: dict[Any, Tensor] = parts[part[1]] if part else tensors
        if (key := int(part[2]) if part else ours) in kept:
            raise UserError(f"{path} holds '{name}' twice: the file is damaged")
        kept[key] = tensor
    for name, layers in parts.items():
        shapes = {layer.shape for layer in layers.values()}
        if sorted(layers) != list(range(len(layers))) or len(shapes) > 1:
            raise UserError(f"{path} has prompts for the layers {sorted(layers)}, of {len(shapes)} shapes: one is lost")
        (first,) = shapes
        tensors[name] = layers[0].new_empty((len(layers), *first))
        for layer, tensor in layers.items():
            tensors[name][layer] = tensor
    return tensors


def check_shapes(tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], kind: str, path: Path) -> None:
    """Hold the tensors against the shapes that they should have."""
    wrong = [f"'{name}' is missing" for name in expected if name not in tensors]
    wrong += [f"'{name}' has no place" for name in tensors if name not in expected]
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
    """Hold widths and depths against those of a backbone.

    Raises:
        UserError: naming the first that differs.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in trained.tensors.items()}
    text, image = shapes.get("context"), shapes.get("tokens", shapes.get("image_tokens.0"))
    projected, shifted = shapes.get("coupling.0.weight"), shapes.get("meta_net.linear1.weight")
    image_width = image[-1] if image else projected[0] if projected else None
    depths = [trained.arguments.get(name, 0) for name in ("depth", "image_depth")]
    if image_width is not None and geometry.image_width is None:
        raise UserError(f"{path} prompts the blocks of an image tower, and {backbone} has none: give its --backbone")
    text_depth, image_depth = (depths[0], depths[1]) if text else (0, depths[0])
    if projected:
        image_depth = text_depth
    for what, got, own in (
        ("text width", text[-1] if text else None, geometry.text_width),
        ("image width", image_width, geometry.image_width),
        ("embedding width", shifted[1] if shifted else None, geometry.embed_dim),
    ):
        if got is not None and got != own:
            raise UserError(f"{path} was trained for a {what} of {got}, {backbone} has {own}: give its --backbone")
    for what, depth, blocks in (
        ("text", text_depth, geometry.text_depth),
        ("image", image_depth, geometry.image_depth),
    ):
        if depth > (blocks or 0):
            raise UserError(
                f"{path} prompts {depth} layers of the {what} tower, {backbone} has {blocks or 0}: give its --backbone"
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
    """Write the folder that `saved` reads. `about`: dataset, protocol and split_hash, None where not known.

    Raises:
        UserError: something is there already, or the place cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()) and not (force and (folder / saved.CONFIG).is_file()):
            holds = "a learner: --force replaces it" if (folder / saved.CONFIG).is_file() else "files: choose another"
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
        saved.write(folder, trained.tensors, config)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}") from None
