"""Weight matrices kept in 4 bits, instead of the model's own; the arithmetic is bitsandbytes'."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_map_only

from vlprompt.errors import UserError

Format = Literal["nf4"]


class Quantized(Tensor):
    """A matrix in 4-bit NormalFloat, blocks of 64 numbers, their scales quantised once more; frozen.

    As the weight of a linear map it is dequantised for the product alone, forward and backward, in the precision of the
    product. Any other function is given the dequantised matrix.

    Source: Dettmers et al., NeurIPS 2023, https://arxiv.org/abs/2305.14314, section 3.
    """

    codes: Tensor
    state: Any  # bitsandbytes' QuantState: the scales
    whole: torch.Size  # shape of the matrix of which this is all, or some rows
    rows: slice

    @staticmethod
    def __new__(cls, codes: Tensor, state: Any, whole: torch.Size, rows: slice = slice(None)) -> "Quantized":
        shape = (len(range(*rows.indices(whole[0]))), whole[1])
        made = Tensor._make_wrapper_subclass(cls, shape, dtype=state.dtype, device=codes.device)
        made.codes, made.state, made.whole, made.rows = codes, state, whole, rows
        return made

    def plain(self) -> Float[Tensor, "n_out n_in"]:
        """The dequantised matrix."""
        return _functional().dequantize_4bit(self.codes, self.state).view(self.whole)[self.rows]

    def stored(self) -> int:
        """Bytes: the codes, the scales and the tables."""
        parts = self.state.as_dict(packed=True).values()
        return self.codes.nbytes + sum(t.nbytes for t in parts if isinstance(t, Tensor))

    def moved(self, device: torch.device | str) -> "Quantized":
        codes = self.codes.to(device)
        if codes is not self.codes:
            self.state.to(device)
        return Quantized(codes, self.state, self.whole, self.rows)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is F.linear and isinstance(args[1], cls):
            (x, weight, *rest), bias = args, (kwargs or {}).get("bias")
            y = _Product.apply(x, weight.plain)
            bias = rest[0] if rest else bias
            return y if bias is None else y + bias.to(y.dtype)
        if func is Tensor.__getitem__ and isinstance(args[1], slice) and args[0].rows == slice(None):
            return cls(args[0].codes, args[0].state, args[0].whole, args[1])
        if func in _ABOUT:
            return super().__torch_function__(func, types, args, kwargs)
        return cls.__torch_dispatch__(func, types, args, kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        args, kwargs = tree_map_only(cls, cls.plain, (args, kwargs or {}))
        return func(*args, **kwargs)


_ABOUT: set[Callable[..., Any]] = {
    *(getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim", "requires_grad")),
    *(Tensor.dim, Tensor.size, Tensor.numel, Tensor.is_floating_point, Tensor.__len__),
}
"""What can be asked without the numbers."""


class _Product(torch.autograd.Function):
    """x W^T, where what is kept for the way back is how to make W."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Callable[[], Tensor]) -> Tensor:
        ctx.matrix = matrix
        return F.linear(x, matrix().to(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad @ ctx.matrix().to(grad.dtype), None


def quantize(matrices: Mapping[str, Tensor], format: Format) -> tuple[dict[str, Quantized], float]:
    """The matrices in 4 bits, and the relative L2 error of what they dequantise to.

    Raises:
        UserError: bitsandbytes is not installed.
    """
    functional, quantized = _functional(), {}
    error = norm = 0.0
    for name, matrix in matrices.items():
        codes, state = functional.quantize_4bit(  # flat: on some CPUs rows that are no whole blocks come back wrong
            matrix.detach().flatten(), blocksize=64, quant_type=format, compress_statistics=True
        )
        quantized[name] = Quantized(codes, state, matrix.shape)
        error += (quantized[name].plain() - matrix).float().square().sum().item()
        norm += matrix.float().square().sum().item()
    return quantized, (error / norm) ** 0.5


def count_bytes(tensors: Iterable[Tensor]) -> int:
    """Of memory, with quantised matrices as they are stored."""
    return sum(t.stored() if isinstance(t, Quantized) else t.nbytes for t in tensors)


def _functional() -> Any:
    try:
        import bitsandbytes.functional
    except ImportError as error:
        raise UserError(
            f"backbone.quantize needs bitsandbytes ({error}): pip install 'vlprompt[quantize]', or use "
            "backbone.quantize=null"
        ) from None
    return bitsandbytes.functional
