"""What training in half precision, and compiled, needs in addition to the arithmetic itself."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlprompt.errors import UserError, unknown
from vlprompt.learners.base import Learner
from vlprompt.towers import Images
from vlprompt.towers.precision import PRECISIONS

LEAST_SCALE = 1.0  # from here down the scale is not what makes a gradient overflow
Step = Callable[[Images, Int[Tensor, " B"]], tuple[Float[Tensor, ""], Float[Tensor, "B C"]]]


def resolve_precision(name: str, device: torch.device) -> str:
    """Raises: UserError for a name that is none, or one that this device cannot do."""
    if name not in PRECISIONS:
        raise unknown("precision", name, PRECISIONS)
    if name == "tf32" and device.type != "cuda":
        raise UserError(f"precision=tf32 is an arithmetic of NVIDIA's GPUs, and device is {device.type}: use fp32")
    return ("bf16" if device.type == "cuda" else "fp32") if name == "auto" else name


def precision_again(trained_in: str, device: torch.device) -> str:
    """The precision to test a trained model in: that of its training, or float32 where nothing else is rounded so."""
    return "fp32" if trained_in == "tf32" and device.type != "cuda" else resolve_precision(trained_in, device)


class Scaler(torch.amp.GradScaler):
    """Keeps small gradients from vanishing in float16: the loss is scaled, the gradients are scaled back before a step.

    A step whose gradients overflow is left out, and the scale is halved. In other precisions it does nothing.
    Source: Micikevicius et al., ICLR 2018, https://arxiv.org/abs/1710.03740, section 3.2.
    """

    def __init__(self, learner: Learner, precision: str) -> None:
        super().__init__(learner.clip.device.type, enabled=precision == "fp16")
        self.learner = learner
        self.scaled = False  # whether the gradients are: not where a learner's own `backward` knows no scale
        self.left_out = 0  # steps

    def backward(self, images: Images, labels: Int[Tensor, " B"]) -> tuple[Float[Tensor, ""], Float[Tensor, "B C"]]:
        """`learner.backward`, whose loss is scaled where the precision needs it."""
        self.learner.scale_loss = self.scale if self.is_enabled() else None
        try:
            return self.learner.backward(images, labels)
        finally:
            self.learner.scale_loss = None

    def scale(self, outputs: Any) -> Any:
        self.scaled = True
        return super().scale(outputs)

    def unscale(self, optimizer: torch.optim.Optimizer) -> bool:
        """Scale the gradients back; -> whether the step can be taken: they did not overflow, or not for their scale."""
        if not self.is_enabled() or not self.scaled:
            return True
        self.unscale_(optimizer)
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        finite = bool(torch.stack([gradient.isfinite().all() for gradient in gradients]).all())
        small = self.get_scale() <= LEAST_SCALE
        self.update()
        self.scaled = False
        self.left_out += not (finite or small)
        return finite or small

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"left_out": self.left_out}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.left_out = state_dict["left_out"]


def compiled(step: Step, learner: Learner, *, say: Callable[[str], object]) -> Step:
    """A step, forward and backward, through torch.compile, with a graph for each size of a batch.

    Where that fails, `say` hears it in one line and the step stays as it is. The first one takes minutes, so that it
    pays in long trainings. Results differ by rounding.
    """
    from torch._dynamo.exc import TorchDynamoException  # which takes a second to import

    fast: Step | None = None

    def give_up(error: Exception) -> None:
        nonlocal fast
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        say(f"compile=true does not work here ({reason[:200]}): the training continues without")
        fast = None
        learner.zero_grad(set_to_none=True)  # of a step that broke off

    def call(images: Images, labels: Int[Tensor, " B"]) -> tuple[Float[Tensor, ""], Float[Tensor, "B C"]]:
        if fast is not None:
            try:
                return fast(images, labels)
            except UserError:
                raise
            except (TorchDynamoException, RuntimeError) as error:  # no compiler, a graph that it cannot make, ...
                give_up(error)
        return step(images, labels)

    torch._logging.set_logs(all=logging.ERROR)  # where a graph breaks is of no use to who trains
    try:
        fast = torch.compile(step, dynamic=False)
    except RuntimeError as error:  # a Python or a system that torch cannot compile on
        give_up(error)
    return call
