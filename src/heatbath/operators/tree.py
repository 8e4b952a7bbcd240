"""Frozen dataclasses of tensors as trees: map over their tensors, turn them into plain Python and back.

Operators and solver states are dataclasses whose fields are tensors, numbers, strings, other such dataclasses, or
tuples and dicts of these. `@tree` registers the class, after which moving averages, dtype and device moves, all-reduce and
checkpoints are each one call of `map_tensors`, `to_plain` or `from_plain`. Plain form holds only dicts, lists, numbers,
strings and tensors, so `torch.load(weights_only=True)` reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar, overload

import torch
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class _Entry:
    """How a class is written in checkpoints: its name, and the new names of fields that were renamed."""

    kind: type
    name: str
    renamed: Mapping[str, str]


_ENTRIES: dict[str, _Entry] = {}  # by name and by alias
_NAMES: dict[type, str] = {}


@overload
def tree(cls: type[T], /) -> type[T]: ...
@overload
def tree(
    *, name: str | None = None, aliases: Iterable[str] = (), renamed: Mapping[str, str] | None = None
) -> Callable[[type[T]], type[T]]: ...
def tree(
    cls: type[T] | None = None,
    /,
    *,
    name: str | None = None,
    aliases: Iterable[str] = (),
    renamed: Mapping[str, str] | None = None,
) -> type[T] | Callable[[type[T]], type[T]]:
    """Class decorator: register a dataclass as a tree of tensors.

    Its name is the format of checkpoints, so a class that is renamed keeps reading the old ones:

        @tree(aliases=["heatbath.Held"], renamed={"carry": "initial"})

    Args:
        cls: the dataclass, where the decorator is used without arguments.
        name: in checkpoints; None: its top-level package and its class name, as in `heatbath.Dense`.
        aliases: names under which older checkpoints hold it.
        renamed: present names of fields by the names that older checkpoints have.

    Raises:
        ValueError: another class is registered under one of the names.
    """

    def register(kind: type[T]) -> type[T]:
        entry = _Entry(kind, name or f"{kind.__module__.partition('.')[0]}.{kind.__name__}", renamed or {})
        for each in (entry.name, *aliases):
            other = _ENTRIES.get(each)
            if other is not None and (other.kind.__module__, other.kind.__qualname__) != (kind.__module__, kind.__qualname__):
                raise ValueError(
                    f"two tree classes are named {each}: {other.kind.__module__}.{other.kind.__qualname__} and "
                    f"{kind.__module__}.{kind.__qualname__}; give one of them another name: @tree(name=...)"
                )
            _ENTRIES[each] = entry
        _NAMES[kind] = entry.name
        return kind

    return register if cls is None else register(cls)


def _field_names(value: Any) -> list[str]:  # Any: an instance of a registered class
    return [f.name for f in fields(value)]


def map_tensors(fn: Callable[..., Tensor], value: T, *others: T) -> T:
    """Apply `fn` to the matching tensors of trees of one structure; everything else is taken from the first.

    The trees must have one structure (`same_structure`).

    >>> import torch
    >>> from heatbath.operators import Dense
    >>> map_tensors(lambda a, b: 0.5 * a + 0.5 * b, Dense(torch.eye(2)), Dense(3 * torch.eye(2))).matrix[0, 0].item()
    2.0
    """
    if isinstance(value, Tensor):
        return fn(value, *others)  # type: ignore[return-value]  # T is Tensor here
    if type(value) in _NAMES:
        return type(value)(
            **{n: map_tensors(fn, getattr(value, n), *(getattr(o, n) for o in others)) for n in _field_names(value)}
        )
    if isinstance(value, tuple):
        return tuple(map_tensors(fn, v, *(o[i] for o in others)) for i, v in enumerate(value))  # type: ignore[return-value, index]  # T is tuple
    if isinstance(value, dict):
        return {k: map_tensors(fn, v, *(o[k] for o in others)) for k, v in value.items()}  # type: ignore[return-value, index]  # T is dict
    return value


def select(mask: Tensor, chosen: T, other: T) -> T:
    """Take the members of a stack where `mask` is true from one tree, the rest from another.

    Trees of different structure (a machine emulated by another law than before) cannot be mixed: then all is `chosen`.

    Args:
        mask: bool `[*stack]`.
        chosen: tree whose tensors lead with `[*stack]`.
        other: another one.
    """
    if not same_structure(chosen, other):
        return chosen
    return map_tensors(lambda a, b: torch.where(mask.reshape((*mask.shape, *(1,) * (a.ndim - mask.ndim))), a, b), chosen, other)


def same_structure(a: Any, b: Any) -> bool:  # Any: a recursive sum type
    """Whether two trees agree in classes and in where they hold tensors, shapes included."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return a.shape == b.shape
    if type(a) in _NAMES:
        return all(same_structure(getattr(a, n), getattr(b, n)) for n in _field_names(a))
    if isinstance(a, tuple):
        return len(a) == len(b) and all(same_structure(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_structure(a[k], b[k]) for k in a)
    return True


def nodes_of(value: Any, kind: type[T]) -> Iterator[T]:  # Any: a recursive sum type
    """All nodes of a class in a tree, those within them left out."""
    if isinstance(value, kind):
        yield value
    elif type(value) in _NAMES:
        for name in _field_names(value):
            yield from nodes_of(getattr(value, name), kind)
    elif isinstance(value, tuple | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from nodes_of(part, kind)


def exchange(value: Any, fn: Callable[[Any], Any]) -> Any:  # Any: a recursive sum type
    """A tree with some nodes exchanged: `fn` is asked outermost first, and what it returns in place of a node is final."""
    new = fn(value)
    if new is not value:
        return new
    if type(value) in _NAMES:
        parts = {n: exchange(getattr(value, n), fn) for n in _field_names(value)}
        return type(value)(**parts)
    if isinstance(value, tuple):
        return tuple(exchange(v, fn) for v in value)
    return {k: exchange(v, fn) for k, v in value.items()} if isinstance(value, dict) else value


def to_plain(value: Any) -> Any:  # Any: a recursive sum type
    """Turn a tree into dicts, lists, numbers, strings and tensors; `from_plain` is the inverse."""
    if type(value) in _NAMES:
        return {"tree": _NAMES[type(value)], "fields": {n: to_plain(getattr(value, n)) for n in _field_names(value)}}
    if isinstance(value, tuple):
        return {"tuple": [to_plain(v) for v in value]}
    if isinstance(value, dict):
        return {"dict": {k: to_plain(v) for k, v in value.items()}}
    if value is None or isinstance(value, Tensor | bool | int | float | str):
        return value
    raise TypeError(f"a {type(value).__name__} cannot be part of a checkpoint; register its class with @tree")


def from_plain(plain: Any) -> Any:  # Any: a recursive sum type
    """Rebuild a tree from `to_plain`.

    Raises:
        ValueError: the checkpoint names a class, or a field of it, that this version does not know.
    """
    if not isinstance(plain, dict):
        return plain
    if "tuple" in plain:
        return tuple(from_plain(v) for v in plain["tuple"])
    if "dict" in plain:
        return {k: from_plain(v) for k, v in plain["dict"].items()}
    name = plain.get("tree")
    entry = _ENTRIES.get(str(name)) or _ENTRIES.get(f"heatbath.{name}")  # version 0.1 wrote bare class names
    if entry is None:
        raise ValueError(f"the checkpoint holds a {name!r}, which this version of heatbath does not know")
    values = {entry.renamed.get(k, k): from_plain(v) for k, v in plain["fields"].items()}
    unknown = values.keys() - {f.name for f in fields(entry.kind)}
    if unknown:
        raise ValueError(f"the checkpoint's {name!r} has {', '.join(sorted(unknown))}, which this version does not know")
    return entry.kind(**values)
