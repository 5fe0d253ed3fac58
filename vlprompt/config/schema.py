"""What a run may be told, checked before anything heavy is loaded."""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from vlprompt.config.about import without_about
from vlprompt.data.download.catalogue import About
from vlprompt.errors import UnknownSettingError, UserError, unknown
from vlprompt.results.record import Selection
from vlprompt.textfiles import path_of

_STRICT = ConfigDict(strict=True, extra="forbid", frozen=True)
_FINITE = ConfigDict(**_STRICT, allow_inf_nan=False)
AT_TEST = ("test_time", "calibration")
"""Groups of which there is none by default, and which leave the training as it is."""
Share = Annotated[float, Field(gt=0, le=1)]
Momentum = Annotated[float, Field(ge=0, lt=1)]


def _check_path(path: str) -> str:
    if not path.strip():
        raise ValueError("a path that is not empty (a shell variable without a value?)")
    location = path_of(path)
    return str(location) if path.startswith("~") else path


Location = Annotated[str, AfterValidator(_check_path)]
"""A path, or a name that may be one: not empty; ~ is the home folder."""


class Bank(BaseModel):
    model_config = _STRICT
    views: PositiveInt | None = None
    pooled: bool = False
    # How features come about; that changes no result beyond rounding.
    use: bool = Field(default=True, exclude=True)
    gb: Annotated[float, Field(ge=0, strict=False)] = Field(default=20.0, exclude=True)

    @model_validator(mode="after")
    def _views_of_a_pool(self) -> "Bank":
        if self.pooled and self.views is None:
            raise UserError("bank.pooled=true is a pool of views and bank.views is null: set bank.views=20, or drop it")
        return self


class Augmentation(BaseModel):
    model_config = _STRICT
    scale: Annotated[tuple[Share, Share], Field(strict=False)]
    flip: Annotated[float, Field(ge=0, le=1)]
    crop: Literal["random", "center"] = "random"

    @model_validator(mode="after")
    def _ordered(self) -> "Augmentation":
        if self.scale[0] > self.scale[1]:
            raise UserError(f"augment.scale is {list(self.scale)}, allowed is [smallest, largest]: swap them")
        return self


class Data(BaseModel):
    model_config = _STRICT
    root: Location | None = None
    download: bool = False
    cache_gb: Annotated[float, Field(ge=0, strict=False)] = 20.0


class Sampling(BaseModel):
    model_config = _STRICT
    name: Literal["coop", "clip_lora", "tip_adapter", "lp_plus_plus", "list", "imbalanced"] = "coop"
    file: Location | None = None
    total: PositiveInt | None = None
    every_class: bool = False

    @property
    def may_lack_classes(self) -> bool:
        return self.name == "imbalanced" and not self.every_class

    def drawn(self, shots: int | Literal["all"]) -> int | str:
        """What tables call the shots: labelled images a class, or in all where classes have different numbers."""
        return shots if self.total is None else f"{self.total}-in-all"

    @model_validator(mode="after")
    def _file_of_a_list(self) -> "Sampling":
        if (self.name == "list") != (self.file is not None):
            raise UserError("sampler.name=list needs sampler.file=PATH, and only it: give both or neither")
        if (self.name == "imbalanced") != (self.total is not None):
            raise UserError("sampler.name=imbalanced needs sampler.total=IMAGES, and only it: give both or neither")
        if self.every_class and self.total is None:
            raise UserError("sampler.every_class is for sampler.name=imbalanced: drop it")
        return self


Channels = Annotated[tuple[float, float, float], Field(strict=False)]
Positive = Annotated[float, Field(gt=0)]


class Preparation(BaseModel):
    """How images are prepared other than the model's own settings say; None: as they say."""

    model_config = ConfigDict(**_STRICT, allow_inf_nan=False)

    size: PositiveInt | None = None  # in pixels
    mean: Channels | None = None  # of red, green and blue on [0, 1]
    std: Annotated[tuple[Positive, Positive, Positive], Field(strict=False)] | None = None
    interpolation: Literal["bicubic", "bilinear"] | None = None
    crop_pct: Share | None = None  # of the resized image's side that a test's centre crop keeps
    crop_mode: Literal["center", "squash"] | None = None  # the shorter side is resized, or both are

    def of_tower(self) -> dict[str, Any]:
        """Those that are set, under the names of the tower."""
        given = self.model_dump(exclude_none=True)
        if mode := given.pop("crop_mode", None):
            given["resize"] = {"center": "shortest", "squash": "squash"}[mode]
        return given


class Backbone(BaseModel):
    model_config = _STRICT
    model: Location
    weights: Location
    quantize: Literal["nf4"] | None = None
    images: Preparation | None = None

    @field_validator("images")
    @classmethod
    def _any(cls, images: Preparation | None) -> Preparation | None:
        return images if images is not None and images.of_tower() else None


def _check_template(template: str) -> str:
    if template.count("{}") != 1:
        raise ValueError("a text with exactly one {} for the class name")
    return template


def _check_name(name: str) -> str:
    if not name:
        raise ValueError("a name")
    return name


def _check_target(config: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(config.get("_target_", ""), str):
        raise ValueError("settings whose _target_ is an import path")
    return config


def _check_named(config: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(config.get("name"), str):
        raise ValueError("settings with a name")
    return config


Named = Annotated[dict[str, Any], AfterValidator(_check_named)]  # a name, and arguments of what has it
Chosen = Annotated[
    Named | None, BeforeValidator(lambda config: None if config == {} else config)
]  # {}: a group's choice of none


def _check_ood(protocol: dict[str, Any]) -> dict[str, Any]:
    names = protocol.get("ood", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"protocol.ood is {names!r}, allowed is a list of data sets: set it as in protocol.ood=[dtd]")
    return protocol


Located = Annotated[dict[str, Any], AfterValidator(_check_target)]  # what `_target_` names, and its arguments


class DataSource(BaseModel):
    model_config = _STRICT
    name: Annotated[str, AfterValidator(_check_name)]
    template: Annotated[str, AfterValidator(_check_template)]
    source: Located
    about: About | None = Field(default=None, exclude=True)  # facts that change no result
    # Where a data set of one's own lies: no part of what it is, so that moving it changes no hash.
    root: Location | None = Field(default=None, exclude=True)
    labels: Location | None = Field(default=None, exclude=True)
    names: Location | None = Field(default=None, exclude=True)
    split: Location | None = Field(default=None, exclude=True)
    # present: without the classes that lack images on this disk; the data set's name and its split say which are left.
    classes: Literal["all", "present"] = Field(default="all", exclude=True)


class Target(BaseModel):
    """A data set that is tested in addition to the one trained on."""

    model_config = _STRICT
    dataset: DataSource
    method: dict[str, Any] = {}  # what of the method's arguments is this data set's own: its template


class Schedule(BaseModel):
    """The learning rate over time.

    `every`: the rate changes at the end of an epoch, or of a step. The cosine starts after the warm-up. Its half
    period is the whole `training`, so that the last epoch does not reach `floor` (CoOp and its kin), or only the
    `rest` of it (VPT).
    """

    model_config = _FINITE

    shape: Literal["cosine", "constant"] = "cosine"
    every: Literal["epoch", "step"] = "epoch"
    warmup: Literal["none", "constant", "linear"] = "constant"
    warmup_epochs: NonNegativeInt = 1
    warmup_lr: NonNegativeFloat = 1e-5  # the constant warm-up's rate; the first rate of a linear one
    period: Literal["training", "rest"] = "training"
    floor: NonNegativeFloat = 0.0


class Average(BaseModel):
    """Weights of the epochs 1, 2, ... in a mean of the parameters: a Gaussian's, made to sum to one."""

    model_config = _FINITE

    mu: float  # the epoch that counts most
    sigma: Annotated[float, Field(gt=0)]


class Fit(BaseModel):
    """Everything about fitting that a paper states. Either `epochs` or `steps`."""

    model_config = _FINITE

    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: Annotated[float, Field(gt=0)] | None = None  # needed unless there are no steps
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
        if self.lr is None and self.epochs != 0:
            raise UserError("the setting 'fit.lr' is missing: give it a value (only fit.epochs=0 needs none)")
        if self.average and self.keep == "best":
            raise UserError("fit.average is a mean over all epochs, fit.keep=best one of them: choose one of the two")
        return self


class Debug(BaseModel):
    """A run that only goes through the code: so many images a class, and steps of the optimiser."""

    model_config = _STRICT
    images: PositiveInt
    steps: PositiveInt = Field(exclude=True)  # which `fit.steps` has


class OfSweep(BaseModel):
    """How a sweep goes about its cells; no run reads it."""

    model_config = _STRICT
    dry_run: bool = False
    shuffle: bool = False


class Settings(BaseModel):
    """The resolved configuration of one run; `conf/config.yaml` explains each key."""

    model_config = _STRICT

    seed: NonNegativeInt
    shots: PositiveInt | Literal["all"]
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$")]
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"]
    compile: bool = False
    threads: PositiveInt | None
    text_chunk: PositiveInt | None
    jobs_per_gpu: PositiveInt | None = None
    workers: NonNegativeInt | None
    cache: bool
    force: bool
    name: str | None
    resume: bool | None = None
    state_minutes: Annotated[float, Field(ge=0, strict=False)] = 5.0
    wandb: Literal["online", "offline", "disabled"] | None
    bank: Bank
    augment: Augmentation
    sampler: Sampling
    data: Data
    backbone: Backbone
    dataset: DataSource
    protocol: Annotated[Located, AfterValidator(_check_ood)]  # with `ood`, which no protocol sees
    method: Located
    fit: Fit | None
    targets: dict[str, Target] = {}  # by name in the configuration; filled from `protocol.targets` and `.ood`
    search: dict[str, Any] = {}  # what a search for settings may vary; a run does not read it
    debug: Debug | None = None
    test_time: Chosen = None  # how a trained learner adapts to test images
    calibration: Chosen = None  # of its logits
    selection: Selection | None = None
    sweep: OfSweep = OfSweep()
    wording: dict[str, Any] = {}  # texts by data set, of which the settings of the method have theirs already


def read_settings(config: Mapping[str, Any]) -> Settings:
    """Check a plain configuration.

    Raises:
        UserError: naming the first key that is unknown, or has a wrong type or range.
    """
    try:
        return Settings.model_validate(at_these_shots(without_about(config)))
    except ValidationError as error:
        raise explain(error) from None


def read_sweep_settings(given: Mapping[str, Any]) -> OfSweep:
    """Check the settings below `sweep`. Raises: UserError."""
    try:
        return OfSweep.model_validate(dict(given))
    except ValidationError as error:
        raise explain(error, "sweep") from None


def read_backbone(config: Mapping[str, Any]) -> Backbone:
    """Check the settings of a frozen model alone; what a later version added is left out. Raises: UserError."""
    try:
        return Backbone.model_validate({name: config[name] for name in Backbone.model_fields if name in config})
    except ValidationError as error:
        raise explain(error, "backbone") from None


def at_these_shots(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration whose settings of the method and the fitting are those at its number of shots."""
    config = dict(config)
    for part in ("fit", "method"):
        if isinstance(config.get(part), Mapping):
            config[part] = {k: at_shots(v, config.get("shots"), f"{part}.{k}") for k, v in config[part].items()}
    return config


def check_arguments(target: Callable[..., Any], arguments: Mapping[str, Any], where: str) -> None:
    """Hold arguments against the optional and keyword-only parameters of a callable, and their annotations.

    Raises:
        UserError: an unknown or missing argument, or one of a wrong type.
    """
    signature = inspect.signature(target).parameters.items()
    parameters = {name: p for name, p in signature if p.kind is p.KEYWORD_ONLY or p.default is not p.empty}
    for name, value in arguments.items():
        if name not in parameters:
            error = unknown(f"setting of {where}", name, parameters)
            raise UnknownSettingError(str(error), f"{where}.{name}", [f"{where}.{known}" for known in parameters])
        annotation = parameters[name].annotation
        if annotation is inspect.Parameter.empty:  # somebody's plug-in without types
            continue
        try:
            adapter: TypeAdapter[Any] = TypeAdapter(annotation, config=ConfigDict(strict=True))
            adapter.validate_python(value)
        except ValidationError as error:
            raise explain(error, f"{where}.{name}") from None
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in arguments:
            raise UserError(f"the setting '{where}.{name}' is missing: give it a value")


def at_shots(value: Any, shots: Any, where: str) -> Any:
    """A setting that is a mapping from shots, at this number: between two keys the larger one, beyond them the last."""
    if not isinstance(value, Mapping) or not value or not all(isinstance(key, int) for key in value):
        return value
    if shots != "all" and not isinstance(shots, int):
        return value  # shots itself is wrong and will be named
    keys = sorted(value)
    wanted = math.inf if shots == "all" else shots
    return value[next((key for key in keys if key >= wanted), keys[-1])]


def explain(error: ValidationError, where: str = "") -> UserError:
    """The first complaint of pydantic as one sentence: what, got, allowed."""
    problems = error.errors(include_url=False)
    first = problems[0]
    path = [str(part) for part in first["loc"] if isinstance(part, int) or str(part).isidentifier()]
    # the members of a union are complained of one by one; what they allow is one list
    same = [p for p in problems if p["input"] is first["input"]]
    allowed = " or ".join(dict.fromkeys(_allowed(p) for p in same))
    tags = {"int", "str", "float", "bool", "NoneType", "Literal", "constrained"}
    name = ".".join([where, *(part for part in path if part not in tags)]).strip(".")
    if first["type"] == "extra_forbidden" or first["type"] == "unexpected_keyword_argument":
        return UnknownSettingError(f"unknown setting '{name}': drop it, or see conf/ for the settings there are", name)
    if first["type"] in ("missing", "missing_argument"):
        return UserError(f"the setting '{name}' is missing: give it a value")
    got = first["input"]
    value = f"\"{name}='{got}'\"" if "valid string" in allowed and isinstance(got, int | float) else f"{name}=VALUE"
    return UserError(f"{name} is {got!r}, allowed is {allowed}: set it as in {value}, or drop it for the default")


def _allowed(problem: Any) -> str:
    message = str(problem["msg"])
    if problem["type"] == "string_pattern_mismatch":
        return "auto, cpu, cuda, cuda:N or mps"
    return message.removeprefix("Input should be ").removeprefix("Value error, ")
