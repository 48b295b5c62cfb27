"""Registry: name -> factory. Configs and checkpoints name things; registries build them.

A saved model therefore holds names and plain numbers only, and loading one never runs foreign code.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from medseg.errors import UsageError, nearest

T = TypeVar("T")
Factory = TypeVar("Factory", bound=Callable[..., Any])


def cannot_be_built(what: str, settings: Mapping[str, Any], error: Exception) -> UsageError:
    """What is told of settings that a constructor could not compute with, e.g. ``"model 'unet'"``."""
    given = ", ".join(f"{key}={value!r}" for key, value in settings.items())
    return UsageError(f"{what} cannot be built with {given or 'its defaults'}: {error}")


class Registry(Generic[T]):
    """Factories of one kind, found by name.

    Modules of `package` register themselves when first asked for, so adding a file is enough to add a part;
    other distributions add theirs through the entry-point group of the same name as the package, or through `group`.

    Args:
        kind: the word used in error messages, e.g. ``"model"``.
        package: dotted name of the package whose modules register their parts, e.g. ``"medseg.models"``.
        group: of entry points, where one package serves several registries.
    """

    def __init__(self, kind: str, package: str, group: str | None = None) -> None:
        self.kind, self.package, self.group = kind, package, group or package
        self._factories: dict[str, Callable[..., T]] = {}
        self._discovered = False

    def register(self, name: str) -> Callable[[Factory], Factory]:
        """Decorator that registers a class or function under `name`; a name can be taken only once."""

        def decorate(factory: Factory) -> Factory:
            if name in self._factories and self._factories[name] is not factory:
                raise UsageError(f"{self.kind} '{name}' is registered twice", fix="choose another name")
            self._factories[name] = factory
            return factory

        return decorate

    def names(self) -> list[str]:
        """All registered names, sorted."""
        self._discover()
        return sorted(self._factories)

    def get(self, name: str) -> Callable[..., T]:
        """The factory of that name. Raises UsageError with the nearest known name."""
        self._discover()
        if name not in self._factories:
            raise UsageError(f"unknown {self.kind} '{name}': {nearest(name, self._factories)}")
        return self._factories[name]

    def arguments(self, name: str) -> set[str]:
        """The keyword arguments that the factory of that name takes."""
        return set(inspect.signature(self.get(name)).parameters)

    def build(self, name: str, **arguments: Any) -> T:
        """Call the factory. Raises UsageError for an argument it does not have."""
        factory, known = self.get(name), self.arguments(name)
        for key in arguments:
            if key not in known:
                raise UsageError(f"{self.kind} '{name}' has no argument '{key}': {nearest(key, known)}")
        return factory(**arguments)

    def _discover(self) -> None:
        if self._discovered:
            return
        self._discovered = True
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self.package}.{module.name}")
        for entry in entry_points(group=self.group):
            self.register(entry.name)(entry.load())
