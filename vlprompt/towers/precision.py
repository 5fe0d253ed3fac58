"""The arithmetic of a run: what is rounded to fewer digits, and what is not."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

PRECISIONS = ("auto", "fp32", "tf32", "bf16", "fp16")
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""The type of matrix products under autocast; learned tensors, norms, softmax and cosines stay in float32."""


@contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """Within it the towers compute as `precision` says: in half precision where that loses little (bf16, fp16), with
    products of rounded float32 (tf32), or in float32 throughout (fp32), convolutions too.
    """
    half = HALF.get(precision)
    with torch.autocast(device.type, half, enabled=half is not None):
        if device.type != "cuda":
            yield
            return
        before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before[0])
            torch.backends.cudnn.allow_tf32 = before[1]
