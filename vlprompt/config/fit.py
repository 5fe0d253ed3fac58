"""How a learner is fitted: the settings that a paper states."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from vlprompt.errors import UserError

_STRICT = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)
Momentum = Annotated[float, Field(ge=0, lt=1)]


class Schedule(BaseModel):
    """The learning rate over time.

    `every`: the rate changes at the end of an epoch, or of a step. The cosine starts after the warm-up. Its half
    period is the whole `training`, so that the last epoch does not reach `floor` (CoOp and its kin), or only the
    `rest` of it (VPT).
    """

    model_config = _STRICT

    shape: Literal["cosine", "constant"] = "cosine"
    every: Literal["epoch", "step"] = "epoch"
    warmup: Literal["none", "constant", "linear"] = "constant"
    warmup_epochs: NonNegativeInt = 1
    warmup_lr: NonNegativeFloat = 1e-5  # the constant warm-up's rate; the first rate of a linear one
    period: Literal["training", "rest"] = "training"
    floor: NonNegativeFloat = 0.0


class Average(BaseModel):
    """Weights of the epochs 1, 2, ... in a mean of the parameters: a Gaussian's, made to sum to one."""

    model_config = _STRICT

    mu: float  # the epoch that counts most
    sigma: Annotated[float, Field(gt=0)]


class Fit(BaseModel):
    """Everything about fitting that a paper states. Either `epochs` or `steps`."""

    model_config = _STRICT

    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: Annotated[float, Field(gt=0)]
    momentum: Momentum = 0.9  # SGD only
    betas: Annotated[tuple[Momentum, Momentum], Field(strict=False)] = (0.9, 0.999)  # Adam only
    eps: Annotated[float, Field(gt=0)] = 1e-8  # Adam only
    weight_decay: NonNegativeFloat = 5e-4
    batch_size: PositiveInt = 32
    drop_last: bool = True  # leave out the last, smaller batch of an epoch, unless it is the only one
    epochs: NonNegativeInt | None = None  # 0: all is done before and after the steps of an optimiser
    steps: PositiveInt | None = None
    schedule: Schedule = Schedule()
    average: Average | None = None  # end with this mean of the parameters over the epochs
    keep: Literal["last", "best"] = "last"  # end with the last epoch, or the one most accurate on `select_on`
    select_on: Literal["val", "test"] = "val"  # what the best epoch and a method's own search are chosen on

    @model_validator(mode="after")
    def _either(self) -> "Fit":
        if (self.epochs is None) == (self.steps is None):
            raise UserError(f"fit takes either epochs or steps, got epochs={self.epochs} and steps={self.steps}")
        if self.average and self.keep == "best":
            raise UserError("fit.average is a mean over all epochs, fit.keep=best one of them: choose one of the two")
        return self

    def identity(self) -> dict[str, Any]:
        """The settings, without younger ones at their defaults, so that results from before them are found again."""
        settings, younger = self.model_dump(), ("average", "keep", "select_on")
        return {k: v for k, v in settings.items() if k not in younger or v != type(self).model_fields[k].default}
