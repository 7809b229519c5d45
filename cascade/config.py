"""Configs as JSON or TOML: frozen dataclasses to plain objects and back, strictly.

A union of several dataclasses (the two networks, the schedules) is told apart by the key "type", the class's name
without "Config". Unknown keys, missing keys and wrong types raise `ConfigError` naming the place.
"""

import difflib
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


class ConfigError(ValueError):
    """A stored config is not what this version expects. The message names the key and what is expected there."""


def _tag(cls: type) -> str:
    return cls.__name__.removesuffix("Config")


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def encode(config: Any) -> dict[str, Any]:
    """A dataclass as numbers, strings, lists and dicts only."""
    hints = get_type_hints(type(config))
    return {field.name: _encode(getattr(config, field.name), hints[field.name]) for field in fields(config)}


def _encode(value: Any, annotation: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        several = sum(map(is_dataclass, _alternatives(annotation))) > 1
        return ({"type": _tag(type(value))} if several else {}) | encode(value)
    return list(value) if isinstance(value, tuple) else value


def decode(cls: type[T], data: Any, where: str) -> T:
    """The dataclass that ``data`` describes; ``where`` begins the path in messages, such as a file name.

    Raises ConfigError.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where} must be an object with the keys of {cls.__name__}, got {data!r}")
    known = {field.name: field for field in fields(cls)}  # pyright: ignore[reportArgumentType] (T is a dataclass)
    for key in data:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            meant = f": did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{where} has the unknown key {key!r}; expected some of {', '.join(known)}{meant}")
    for name, field in known.items():
        if name not in data and field.default is MISSING and field.default_factory is MISSING:
            raise ConfigError(f"{where} lacks {name!r}")
    hints = get_type_hints(cls)
    values = {name: _decode(hints[name], value, f"{where}: {name}") for name, value in data.items()}
    try:
        return cls(**values)
    except ValueError as error:
        raise error if isinstance(error, ConfigError) else ConfigError(f"{where}: {error}") from error


def _decode(annotation: Any, value: Any, where: str) -> Any:
    alternatives = _alternatives(annotation)
    if value is None and type(None) in alternatives:
        return None
    classes: list[Any] = [option for option in alternatives if is_dataclass(option)]
    if len(classes) > 1:
        tags = {_tag(option): option for option in classes}
        if not isinstance(value, Mapping) or value.get("type") not in tags:
            raise ConfigError(f'{where} must be an object whose "type" is one of {", ".join(tags)}, got {value!r}')
        rest = {key: item for key, item in value.items() if key != "type"}
        return decode(tags[value["type"]], rest, where)
    if classes:
        return decode(classes[0], value, where)
    for option in alternatives:
        fits, converted = _plain(option, value, where)
        if fits:
            return converted
    raise ConfigError(f"{where} must be {_describe(annotation)}, got {value!r}")


def _plain(annotation: Any, value: Any, where: str) -> tuple[bool, Any]:
    """Whether a value that is no dataclass fits, and as what."""
    if get_origin(annotation) is Literal:
        return value in get_args(annotation), value
    if get_origin(annotation) is tuple:
        if not isinstance(value, list | tuple):
            return False, None
        items = get_args(annotation)
        if len(items) == 2 and items[1] is Ellipsis:
            items = (items[0],) * len(value)
        if len(items) != len(value):
            return False, None
        pairs = zip(items, value, strict=True)
        return True, tuple(_decode(item, part, f"{where}[{i}]") for i, (item, part) in enumerate(pairs))
    if annotation is float and isinstance(value, int) and not isinstance(value, bool):
        return True, float(value)
    if annotation is int and isinstance(value, bool):
        return False, None
    return isinstance(annotation, type) and isinstance(value, annotation), value


def _describe(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(map(repr, get_args(annotation)))
    if len(options := _alternatives(annotation)) > 1:
        return " or ".join("null" if option is type(None) else _describe(option) for option in options)
    if get_origin(annotation) is tuple:
        items = get_args(annotation)
        return f"a list ({annotation})" if Ellipsis in items else f"a list of {len(items)} ({annotation})"
    return f"a value of type {getattr(annotation, '__name__', annotation)}"
