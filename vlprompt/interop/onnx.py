"""The image side of a learner as an ONNX model."""

import logging
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vlprompt.errors import UserError
from vlprompt.interop.classifier import (
    CLASSIFIER,
    PREPROCESS,
    classifier_of,
    image_outputs,
    shares,
    write_preprocess,
)
from vlprompt.interop.folder import whole_folder
from vlprompt.learners.base import Learner
from vlprompt.learners.two_stage import TwoStage
from vlprompt.learners.weights import WeightLearner
from vlprompt.towers import Images, ImageTower

OPSET = 18
MODEL, DATA = "image.onnx", "image.onnx.data"
LARGEST = 1_800_000_000  # bytes of weights within the model itself, whose format ends at 2 GiB
TOLERANCE = 1e-4  # of the largest feature


class ImageSide(nn.Module):
    """Normalised pixels [B, 3, H, W] -> the features that `shares` names."""

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.learner = learner
        self.tower: ImageTower | None = None
        clip = learner.clip
        tuned = learner.tuned if isinstance(learner, TwoStage) else learner
        if isinstance(tuned, WeightLearner) and tuned.edits_image:
            clip = tuned.adapted("image").materialized()
            self.tower = clip.image
        self.model = clip.weights.root

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        images = Images(pixels)
        return (self.tower(images),) if self.tower else tuple(image_outputs(self.learner, images).values())


def write_onnx(learner: Learner, folder: Path, *, force: bool = False) -> list[str]:
    """Write `image.onnx`, `preprocess.json` and, where a matrix reads its features, `classifier.npz`; -> their names.

    Pixels are normalised as `preprocess.json` says, in batches of any size. onnxruntime has to give the same features.

    Raises:
        UserError: a library that is missing; a tower that cannot be written, or comes out otherwise; files that are
            there already, unless `force`; a full disk.
    """
    check_libraries()
    with whole_folder(folder, (MODEL, DATA, PREPROCESS, CLASSIFIER), force=force) as draft:
        side, names = ImageSide(learner).eval(), list(shares(learner))
        save(side, draft / MODEL, names, large=weights_in(learner) > LARGEST)
        check(side, draft / MODEL, names)
        classifier = classifier_of(learner)
        if classifier is not None:
            classifier.save(draft / CLASSIFIER, learner.classes)
        size = learner.clip.preprocess.size
        pixels = {"name": "pixels", "shape": ["batch", 3, size, size], "dtype": "float32"}
        write_preprocess(draft / PREPROCESS, learner, classifier, input=pixels, outputs=names, opset=OPSET)
        return sorted(path.name for path in draft.iterdir())


def check_libraries() -> None:
    """Raises: UserError that says how to install what is missing."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"--to onnx needs onnx, onnxruntime and onnxscript ({error}): pip install 'vlprompt[onnx]'"
        ) from None


def weights_in(learner: Learner) -> int:
    """Bytes of the image tower and of what is trained."""
    tensors = [*learner.clip.tensors("image").values(), *learner.parameters()]
    return sum(t.nbytes for t in tensors)


def pixels_of(side: ImageSide, n: int) -> Tensor:
    size = side.learner.clip.preprocess.size
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(n))


@torch.no_grad()
def save(side: ImageSide, path: Path, names: list[str], *, large: bool) -> None:
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    heard = logging.root.manager.disable
    logging.disable(logging.WARNING)  # several loggers tell of the exporter's own ways
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            batch = ({0: torch.export.Dim("batch")},)
            program: Any = torch.onnx.export(
                side, (pixels_of(side, 2),), dynamo=True, dynamic_shapes=batch, input_names=["pixels"],
                output_names=names, opset_version=OPSET, verbose=False,
            )  # fmt: skip
        ClearMetadataAndDocStringPass()(program.model)  # each node's has the paths of this machine's Python files
        program.save(path, external_data=large)
    except OSError:
        raise
    except Exception as error:  # of as many kinds as the exporter has steps
        reason = re.sub(r"\x1b\[\d*m", "", " ".join(str(error.__cause__ or error).split()))[:200]
        raise UserError(
            f"the image side of {type(side.learner).__name__} cannot be written as ONNX ({reason}): use --to hub"
        ) from None
    finally:
        logging.disable(heard)


@torch.no_grad()
def check(side: ImageSide, path: Path, names: list[str]) -> None:
    """Raises: UserError where onnxruntime gives other features, for one image or several."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for n in (1, 3):
        pixels = pixels_of(side, n)
        theirs = session.run(names, {"pixels": pixels.numpy()})
        for name, ours, other in zip(names, side(pixels), theirs, strict=True):
            wanted = ours.float().numpy()
            error = float(np.abs(other - wanted).max()) / max(1.0, float(np.abs(wanted).max()))
            if not error <= TOLERANCE:  # NaN, too
                raise UserError(
                    f"onnxruntime gives other {name} than {type(side.learner).__name__} does (they differ by "
                    f"{error:.1e} of the largest, allowed are {TOLERANCE:.0e}), so nothing was written: use --to hub"
                )
