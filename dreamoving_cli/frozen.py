"""What all options share: they are frozen and checked, and a refused value is said in one sentence.

Not here: any option (options.py).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, core_schema

from dreamoving_cli.errors import UsageError


@dataclass(frozen=True)
class OneOf:
    """Annotates a str that must be a key of a table."""

    words: tuple[str, ...]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        return core_schema.literal_schema(list(self.words))


def field(default: Any, panel: str, text: str, flag: str | None = None, **rules: Any) -> Any:
    """A preset key: its default, the --help panel and sentence, and its flag where that is not its name."""
    return Field(default, description=text, json_schema_extra={"panel": panel, "flag": flag}, **rules)


class Options(BaseModel):
    """Frozen, complete, no unknown keys, no NaN; what is wrong is said in one sentence (UsageError)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise refusal(type(self), error) from None

    def replace(self, **changes: Any) -> Self:
        """The same options with `changes`, checked again."""
        return type(self)(**{name: getattr(self, name) for name in type(self).model_fields} | changes)


def refusal(model: type[BaseModel], error: ValidationError) -> UsageError:
    """The first thing that pydantic found wrong, as one sentence with the value and the remedy."""
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    key = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "extra_forbidden":
        return unknown("option", key, model.model_fields)
    if first["type"] == "missing":
        return UsageError(f"{name} is missing", f"Give '{name}'.")
    value = first["input"]
    shown = f"'{value}'" if isinstance(value, str) else str(value)
    return UsageError(f"{name} is {shown}", remedy(model.model_fields[key], str(first["msg"])))


def unknown(what: str, name: str, known: Iterable[str]) -> UsageError:
    """An unknown name, with the nearest known one or the list of all."""
    known = list(known)
    near = get_close_matches(name, known, n=1)
    return UsageError(
        f"unknown {what} '{name}'", f"Did you mean '{near[0]}'?" if near else f"Known: {', '.join(known)}."
    )


def bounds(info: FieldInfo) -> tuple[Any, Any]:
    """The smallest and largest allowed value of a field; None where there is no limit."""
    rules = [
        *info.metadata,
        *(rule for part in parts(info.annotation) for rule in getattr(part, "__metadata__", ())),
    ]
    rules += [inner for rule in rules if isinstance(rule, FieldInfo) for inner in rule.metadata]
    lowest = next((rule.ge for rule in rules if hasattr(rule, "ge")), None)
    highest = next((rule.le for rule in rules if hasattr(rule, "le")), None)
    return lowest, highest


def choices(info: FieldInfo) -> list[str]:
    """The allowed words of a field; empty where any value of its type will do."""
    tables = [rule.words for rule in info.metadata if isinstance(rule, OneOf)]
    literal = [part for part in parts(info.annotation) if getattr(part, "__origin__", None) is Literal]
    return [str(word) for words in (*tables, *(part.__args__ for part in literal)) for word in words]


def parts(annotation: Any) -> list[Any]:
    """The members of `A | None`, or the type itself."""
    members = getattr(annotation, "__args__", ()) if type(None) in getattr(annotation, "__args__", ()) else ()
    return list(members) or [annotation]


def remedy(info: FieldInfo, message: str) -> str:
    words = choices(info)
    if words:
        return f"Choose one of {', '.join(words)}."
    lowest, highest = bounds(info)
    if lowest is not None:
        return f"Choose {lowest} to {highest}." if highest is not None else f"Choose {lowest} or more."
    return message.replace("Input should be", "Give") + "."
