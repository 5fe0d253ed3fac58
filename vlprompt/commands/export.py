"""`vlprompt export`: a trained learner for other libraries, or for a model hub."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlprompt.commands.arguments import words
from vlprompt.errors import UserError, printable
from vlprompt.textfiles import path_of

if TYPE_CHECKING:
    from vlprompt.learners.base import Learner

FORMS = {
    "peft": "a low-rank update for PEFT, on transformers.CLIPModel",
    "open_clip": "merged weights, as a checkpoint of open_clip",
    "classifier": "the classes as a matrix (npz), for features of the plain frozen model",
    "onnx": "the image tower for onnxruntime, with the classes as a matrix where there is one",
    "hub": "a folder for a model hub: tensors, JSON and a model card",
}
READ = {
    "peft": "peft.PeftModel.from_pretrained(transformers.CLIPModel..., '{}')",
    "open_clip": "open_clip.create_model_and_transforms('local-dir:{}')",
    "classifier": "numpy.load('{}/classifier.npz'): logits = scale * f @ weight.T + bias",
    "onnx": "onnxruntime.InferenceSession('{}/image.onnx')",
    "hub": "vlprompt.load('{}'), or hf://OWNER/NAME after an upload",
}
"""How each is read; {} is the folder."""


def register(commands: Any) -> None:
    """Add it to the sub-commands."""
    text = "write a trained learner for PEFT, open_clip, ONNX or NumPy, or as a folder for a model hub"
    parser = commands.add_parser("export", help=text, description=text)
    parser.add_argument("run", metavar="RUN", help="a run's folder, a learner's folder, or hf://owner/name")
    parser.add_argument("folder", metavar="OUT", type=path_of, help="the folder of the files")
    forms = "; ".join(f"{name}: {what}" for name, what in FORMS.items())
    parser.add_argument("--to", choices=FORMS, default="peft", help=f"{forms} (default: peft)")
    parser.add_argument(
        "--classes", type=words, metavar="A,B,C", help="of classifier and onnx: choose between these names instead"
    )
    parser.add_argument("--force", action="store_true", help="replace an export that is there")
    parser.set_defaults(command=export)


def export(options: argparse.Namespace) -> int:
    from vlprompt.api import folder_of

    if options.classes is not None and options.to not in ("classifier", "onnx"):
        raise UserError(f"--classes is for --to classifier and --to onnx, got --to {options.to}: drop it")
    source = folder_of(options.run)
    names = WRITERS[options.to](source, options)
    print(printable(f"{options.folder}: {', '.join(names)}"))  # noqa: T201
    print(printable(f"Read it with {READ[options.to].format(options.folder)}"))  # noqa: T201
    return 0


def learner_of(source: Path, classes: Sequence[str] | None = None, *, quantized: bool = True) -> "Learner":
    """The learner in a folder, on the CPU, with plain numbers for 4-bit ones; bound to other classes if asked."""
    from vlprompt.api import Model
    from vlprompt.config.build import saved_learner

    learner, *_ = saved_learner(source, quantized=quantized, plain=True)
    return Model(learner).with_classes(classes).learner if classes is not None else learner


def tell_of_calibration(learner: "Learner", whose: str) -> None:
    """Say that an export leaves it out."""
    if learner.calibration is not None:
        told = ", ".join(str(value) for value in learner.calibration.told.values())
        print(f"{whose} no calibration: logits are the learner's without it ({told})")  # noqa: T201


def to_peft(source: Path, options: argparse.Namespace) -> list[str]:
    from vlprompt.interop.peft import CONFIG, TENSORS, write_peft
    from vlprompt.learners.lora import LoRA

    learner = learner_of(source, quantized=False)
    others = f"--to has other forms ({', '.join(name for name in FORMS if name != 'peft')})"
    if not isinstance(learner, LoRA):
        raise UserError(
            f"{source} holds a {type(learner).__name__}: only low-rank updates have a form in PEFT; {others}"
        )
    if learner.has_head:
        raise UserError(
            f"{source} has a linear head, which PEFT's form does not hold: train with method.head=text, on a CLIP; "
            f"{others}"
        )
    write_peft(learner, options.folder, force=options.force)
    tell_of_calibration(learner, "PEFT's form has")
    return [CONFIG, TENSORS]


def to_open_clip(source: Path, options: argparse.Namespace) -> list[str]:
    from vlprompt.interop.open_clip import write_open_clip
    from vlprompt.results.learner_files import read_config

    learner = learner_of(source)
    model = read_config(source)["backbone"]["model"] if learner.mergeable else ""
    names = write_open_clip(learner, model, options.folder, force=options.force)
    tell_of_calibration(learner, "open_clip's models have")
    if (pre := learner.clip.preprocess).crop_pct != 1:  # which open_clip has no setting for
        larger = int(pre.size / pre.crop_pct)
        print(f"open_clip resizes images to {pre.size} pixels, here they were resized to {larger} and cut")  # noqa: T201
    return names


def to_classifier(source: Path, options: argparse.Namespace) -> list[str]:
    from vlprompt.interop.classifier import write_classifier

    return write_classifier(learner_of(source, options.classes), options.folder, force=options.force)


def to_onnx(source: Path, options: argparse.Namespace) -> list[str]:
    from vlprompt.interop.onnx import check_libraries, write_onnx

    check_libraries()
    return write_onnx(learner_of(source, options.classes), options.folder, force=options.force)


def to_hub(source: Path, options: argparse.Namespace) -> list[str]:
    from vlprompt.interop.hub import write_hub
    from vlprompt.results.learner_files import CONFIG, read_config
    from vlprompt.results.record import Record

    if not (source / CONFIG).is_file():
        raise UserError(
            f"{source} holds no {CONFIG}, which earlier versions did not write: run it again with force=true"
        )
    learner = learner_of(source, quantized=False)
    return write_hub(learner, read_config(source), Record.read(source), options.folder, force=options.force)


WRITERS: dict[str, Callable[[Path, argparse.Namespace], list[str]]] = {
    "peft": to_peft, "open_clip": to_open_clip, "classifier": to_classifier, "onnx": to_onnx, "hub": to_hub,
}  # fmt: skip
