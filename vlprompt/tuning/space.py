"""What a search for settings may vary: ranges and choices, as the `search` of a configuration declares them."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vlprompt.config.schema import Settings, explain
from vlprompt.errors import UserError

_STRICT = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class Range(BaseModel):
    """Numbers from `low` to `high`, both included: whole ones where both are whole; `log`: evenly over magnitudes."""

    model_config = _STRICT

    low: int | float
    high: int | float
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> "Range":
        if self.low >= self.high:
            raise ValueError("low below high")
        if self.log and self.low <= 0:
            raise ValueError("low above 0 where log is true")
        return self

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    def __contains__(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return self.low <= value <= self.high and (not self.whole or isinstance(value, int))


class Choices(BaseModel):
    """A few values of any kind."""

    model_config = _STRICT

    choices: Annotated[list[Any], Field(min_length=2)]

    def __contains__(self, value: object) -> bool:
        return value in self.choices


Dimension = Range | Choices
Space = dict[str, Dimension]  # by setting, as on the command line: fit.lr


def read_space(settings: Settings) -> Space:
    """The search space that a run's settings declare, checked.

    Raises:
        UserError: a wrong range, or a name that is no setting of this run.
    """
    space, known = {}, settings.model_dump()
    for name, node in leaves(settings.search).items():
        try:
            value_at(known, name)
            space[name] = read_dimension(node)
        except KeyError:
            raise UserError(f"search.{name} is not a setting of this run: drop it from `search`") from None
        except ValidationError as error:
            raise explain(error, f"search.{name}") from None
    return space


def leaves(search: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """What is declared for each setting in a tree of the configuration's shape, unchecked."""
    dimensions: dict[str, Any] = {}
    for name, node in search.items():
        declared = not isinstance(node, Mapping) or bool(node.keys() & {"low", "high", "log", "choices"})
        dimensions |= {f"{path}{name}": node} if declared else leaves(node, f"{path}{name}.")
    return dimensions


def read_dimension(node: Any) -> Dimension:
    """Raises: pydantic.ValidationError."""
    kind = Choices if isinstance(node, Mapping) and "choices" in node else Range
    return kind.model_validate(node)


def value_at(settings: Mapping[str, Any], name: str) -> Any:
    """The value of a dotted name. Raises: KeyError."""
    node: Any = settings
    for part in name.split("."):
        if not isinstance(node, Mapping):
            raise KeyError(name)
        node = node[part]
    return node
