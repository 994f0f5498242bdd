"""Registry of plugins, one module each: datasets, graders, pretraining methods, explainers.

A plugin is looked up by the name of its module, so adding one means adding one file:

>>> graders: Registry = Registry("drgrade.grading")
>>> @graders.register("majority")
... class Majority: ...
>>> graders.get("majority")()
"""

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable
from typing import Any, TypeVar

from drgrade.errors import UserError

T = TypeVar("T")


class Registry:
    """Maps a name to the class that registered under it in ``<package>.<name>``."""

    def __init__(self, package: str) -> None:
        self.package = package
        self._parts: dict[str, Any] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Class decorator: make the class available as ``name``, which must be its module's name."""

        def add(part: T) -> T:
            self._parts[name] = part
            return part

        return add

    def names(self) -> list[str]:
        """Sorted names of all plugins; imports every module of the package."""
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self.package}.{module.name}")
        return sorted(self._parts)

    def get(self, name: str) -> Any:
        """The class registered as ``name``; imports its module on first use.

        Raises:
            UserError: no module of that name exists, or it registers nothing under that name.
        """
        module = f"{self.package}.{name}"
        if name not in self._parts:
            if not str(name).isidentifier() or importlib.util.find_spec(module) is None:
                raise UserError(f"{name!r}: no module {module}; is the name spelled right?")
            importlib.import_module(module)
        if name not in self._parts:
            raise UserError(f"{name!r}: {module} registers nothing under that name")
        return self._parts[name]
