"""Stand-ins for packages that a machine lacks, so that what does without them can be imported and run there.

medseg's readers and settings import nibabel, pydantic and others where a checkpoint of a network alone needs none of
them. A stand-in takes part in class statements, decorators and annotations and computes nothing.
"""

from __future__ import annotations

import importlib.machinery
import sys
import types
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from typing import Any, ClassVar

PACKAGES = (
    "albumentations", "annotated_types", "cc3d", "edt", "highdicom", "hydra", "imagecodecs", "monai", "networkx",
    "nibabel", "omegaconf", "pydantic", "pydicom", "SimpleITK", "tifffile",
)  # fmt: skip


class Inert:
    """Whatever is asked of it, it is; as a decorator it changes nothing, as a base class it adds nothing."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if len(args) == 1 and not kwargs and isinstance(args[0], types.FunctionType | type) else self

    def __getattr__(self, name: str) -> Inert:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __getitem__(self, key: Any) -> Inert:
        return self

    def __or__(self, other: Any) -> Inert:
        return self

    __ror__ = __or__

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return (Bare,)

    def __instancecheck__(self, instance: Any) -> bool:
        return False


class Bare:
    """A base class that takes any keyword of a class statement."""

    model_fields: ClassVar[dict[str, Any]] = {}  # of pydantic's, which are read at import

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__()


class StandIns(MetaPathFinder, Loader):
    """Finds a stand-in for every missing package of `PACKAGES`; comes last, so that a real one wins.

    Attributes:
        used: names of the packages that were missing.
    """

    def __init__(self) -> None:
        self.used: set[str] = set()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """A spec for `PACKAGES` and what is inside them, else None."""
        top = name.partition(".")[0]
        if top not in PACKAGES:
            return None
        self.used.add(top)
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        """A module whose every name is inert."""
        module = types.ModuleType(spec.name)
        module.__getattr__ = lambda name: _inert(name)  # type: ignore[method-assign]
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to do."""


def _inert(name: str) -> Inert:
    if name.startswith("__") and name != "__version__":
        raise AttributeError(name)
    return Inert()


def install() -> StandIns:
    """Let missing packages be stood in for, from now on in this process."""
    finder = StandIns()
    sys.meta_path.append(finder)
    return finder
