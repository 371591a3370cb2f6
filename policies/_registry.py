"""A named table of factories, with errors that name the nearest entry."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator


class UnknownNameError(ValueError):
    """A name that no factory is registered under."""


class Registry[T]:
    """Factories by name.

    >>> colours: Registry[Callable[[], str]] = Registry("colour")
    >>> @colours.register("red")
    ... def red() -> str:
    ...     return "#f00"
    >>> colours["red"]()
    '#f00'
    >>> colours["rad"]
    Traceback (most recent call last):
        ...
    policies._registry.UnknownNameError: unknown colour 'rad'. Did you mean 'red'? Valid: red
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Enter the decorated factory under ``name``.

        Raises:
            ValueError: the name is taken.
        """

        def enter(factory: T) -> T:
            if name in self._entries:
                raise ValueError(f"a {self.kind} named '{name}' is registered already")
            self._entries[name] = factory
            return factory

        return enter

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            raise UnknownNameError(f"unknown {self.kind} '{name}'.{self._hint(name)}")
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def _hint(self, name: str) -> str:
        close = difflib.get_close_matches(name, self._entries, n=1, cutoff=0.4)
        guess = f" Did you mean '{close[0]}'?" if close else ""
        return f"{guess} Valid: {', '.join(self)}"
