"""What a search for settings may vary: ranges and choices, as the `search` of a configuration declares them."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

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


def leaves(search: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """What is declared for each setting in a tree of the configuration's shape, unchecked."""
    found: dict[str, Any] = {}
    for name, node in search.items():
        declared = not isinstance(node, Mapping) or bool(node.keys() & {"low", "high", "log", "choices"})
        found |= {f"{path}{name}": node} if declared else leaves(node, f"{path}{name}.")
    return found


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
