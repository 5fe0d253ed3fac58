"""A GPU that is none: tensors that say cuda:0, compute on the CPU and refuse to meet CPU tensors, as a GPU's do.

`cuda()` puts it in: what is asked for on `cuda` within it is a `DeviceTensor`. Its numbers are those of the CPU, so
that a run on it can be held against one there. `mps()` is Apple's: it has no float64, and lacks some operations. What
they cannot show: a GPU's own kernels, their speed and their memory.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("cuda", 0)  # which the stand-in is at present
PEAK = 12345  # bytes that it says it needed
CROSSING = {"aten::_to_copy", "aten::copy_"}  # may read one device and write to the other
INDEXING = {f"aten::{name}" for name in ("index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_")}
MISSING = {"mps": {"aten::_linalg_eigh"}}  # by kind of GPU: operations that torch has no code for


class DeviceTensor(Tensor):
    """A tensor of the stand-in; `inner` has its numbers. To torch itself it is on `meta`, where nothing is computed."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "DeviceTensor":
        assert type(inner) is Tensor
        return Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device="meta",
        )  # fmt: skip

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return call(func, args, kwargs or {})

    device = property(lambda self: DEVICE)
    is_cuda = property(lambda self: DEVICE.type == "cuda")
    is_cpu = is_meta = property(lambda self: False)

    def tolist(self) -> Any:
        return self.detach().inner.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise TypeError(f"can't convert a {DEVICE} tensor to numpy: copy it to the CPU first")
        return self.detach().inner.numpy()

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()

    def __deepcopy__(self, memo: Any) -> "DeviceTensor":
        with torch.no_grad():
            copied: Any = DeviceTensor(self.detach().inner.clone()).requires_grad_(self.requires_grad)
        if getattr(self, "_is_param", False):
            copied._is_param = True
        return copied

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"{self.detach().inner!r} on {DEVICE}"


def is_ours(value: Any) -> bool:
    return isinstance(value, DeviceTensor)


def mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """A value of an operator, or those in its lists, changed; torch's own walk over trees takes most of a test."""
    if isinstance(value, list | tuple):
        return type(value)(mapped(change, part) for part in value)
    return change(value)


def tensors_in(values: Iterable[Any]) -> list[Tensor]:
    tensors: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            tensors.append(value)
        elif isinstance(value, list | tuple):
            tensors += tensors_in(value)
    return tensors


def call(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation on the numbers; its result is where a GPU would leave it."""
    name, schema = func._schema.name, func._schema
    given = tensors_in((args, *kwargs.values()))
    wanted = kwargs.get("device")
    on_device = any(map(is_ours, given)) if wanted is None else torch.device(wanted).type in (DEVICE.type, "meta")
    if any(map(is_ours, given)) and name not in CROSSING:
        refuse_mixture(name, args, given)
        if name in MISSING.get(DEVICE.type, ()):
            raise NotImplementedError(f"{name} is not implemented on {DEVICE}")
    plain_args = mapped(inner, args)
    plain = {key: mapped(inner, value) for key, value in kwargs.items()}
    if wanted is not None:
        plain["device"] = torch.device("cpu")
    if plain.get("pin_memory"):
        plain["pin_memory"] = False
    result = func(*plain_args, **plain)
    if on_device and DEVICE.type == "mps" and any(t.dtype == torch.float64 for t in tensors_in([result])):
        raise TypeError(f"{name}: {DEVICE} has no float64")
    if schema.returns and schema.returns[0].alias_info and schema.returns[0].alias_info.is_write:
        return kwargs.get("out", args[0])  # in place: the very tensor that was given
    return mapped(lambda v: DeviceTensor(v) if on_device and type(v) is Tensor else v, result)


def inner(value: Any) -> Any:
    return value.inner if is_ours(value) else value


def refuse_mixture(name: str, args: Any, given: list[Tensor]) -> None:
    """Raises: RuntimeError where a GPU's tensor meets a CPU tensor that is no single number, or no index into it."""
    others = [value for value in given if not is_ours(value) and value.dim() > 0]
    if name in INDEXING and is_ours(args[0]):
        others = [value for value in others if not any(value is index for index in args[1])]
    if others or (name in ("aten::cat", "aten::stack") and not all(map(is_ours, given))):
        where = ", ".join(f"{value.device} {list(value.shape)}" for value in given)
        raise RuntimeError(f"Expected all tensors to be on the same device, {name} got {where}")


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return call(func, args, kwargs or {})


@contextmanager
def cuda(n_devices: int = 1) -> Iterator[None]:
    """Within it torch has so many GPUs, which are all the same stand-in."""
    answers = {
        "is_available": lambda: True,
        "device_count": lambda: n_devices,
        "is_bf16_supported": lambda *_, **__: True,
        "get_device_name": lambda *_: "stand-in",
        "max_memory_allocated": lambda *_: PEAK,
        "get_device_properties": lambda index=0: SimpleNamespace(
            name="stand-in", major=9, minor=0, total_memory=2**30, uuid=f"card-{index}"
        ),
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "set_rng_state": lambda state, *_: torch.set_rng_state(state),
        **{
            name: lambda *_, **__: None
            for name in ("_lazy_init", "synchronize", "reset_peak_memory_stats", "empty_cache")
        },
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, answer in answers.items():
            patch.setattr(torch.cuda, name, answer)
        with standing_in(torch.device("cuda", 0)):
            yield


@contextmanager
def mps() -> Iterator[None]:
    """Within it torch has Apple's GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.backends.mps, "is_available", cache(lambda: True))  # as torch has it
        with standing_in(torch.device("mps", 0)):
            yield


@contextmanager
def standing_in(device: torch.device) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch, _Mode(), swapped_parameters():
        patch.setitem(globals(), "DEVICE", device)
        patch.setattr(torch.accelerator, "is_available", lambda: False)  # no streams, no graphs, no pinned memory
        for name in ("tensor", "as_tensor"):  # which would ask the driver before any mode is asked
            patch.setattr(torch, name, made_then_moved(getattr(torch, name)))
        patch.setattr(Tensor, "to", with_index(Tensor.to))
        yield


@contextmanager
def swapped_parameters() -> Iterator[None]:
    """A module's parameters stay the same objects when it is moved, as on a GPU: others may hold them."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)


def made_then_moved(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def made(data: Any, *, device: Any = None, **more: Any) -> Tensor:
        if is_ours(data):
            return data if device is None else data.to(device)
        tensor = make(data, **more)
        return tensor if device is None else tensor.to(device)

    return made


def with_index(to: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Without an index torch would ask the driver which GPU is meant."""

    def moved(tensor: Tensor, *args: Any, **more: Any) -> Tensor:
        given = [
            DEVICE if isinstance(value, str | torch.device) and str(value) == DEVICE.type else value for value in args
        ]
        return to(tensor, *given, **more)

    return moved
