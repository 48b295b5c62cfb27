"""SkipPath: pyramid operations, edits and a merge per level, chained from plain data and hosted by a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

from torch import Tensor, nn

from medseg.blocks.skip import EDITS, MERGES, PYRAMID, SkipContext, SkipSettings
from medseg.errors import UsageError, nearest
from medseg.registry import Registry, cannot_be_built

ROLES = ("pyramid", "edit", "merge")
BOTTLENECK = "bottleneck"


class SkipSite(NamedTuple):
    """Where a skip meets the decoder: its level (0 = finest), its channels, and those of the decoder."""

    level: int
    channels: int
    decoder_channels: int


class SkipPath(nn.Module):
    """What a host calls: the path itself once with the encoder's features, then `join` wherever a skip arrives.

    Every edit takes, beside its own arguments, ``levels`` (those it works on; default all) and
    ``include_bottleneck`` (also edit the deepest features, which are no skip); a pyramid operation takes ``levels``.

    Args:
        settings: a merge's name, or ``{"pyramid": [...], "edit": [...], "merge": ...}`` whose parts are names or
            mappings with ``name`` and arguments. None: nothing but the host's merge.
        spatial_dims: 2 or 3.
        channels: of the encoder features that the host passes, finest first.
        decoder_channels: of the decoder features that each skip meets, finest first; one fewer than `channels` where
            the host passes its bottleneck too.
        sites: instead of `decoder_channels`, for hosts with several skips per level, or none on some: name ->
            `SkipSite`.
        merge: the host's own, where the settings name none.

    Attributes:
        out_channels: site name (the level's number) -> channels after the merge.

    Raises:
        UsageError: for unknown names, with the nearest known one, and for parts that do not fit.

    Example:
        >>> path = SkipPath("concat", spatial_dims=2, channels=[8, 16, 32], decoder_channels=[8, 16])
        >>> path.out_channels
        {'0': 16, '1': 32}
    """

    def __init__(
        self,
        settings: SkipSettings,
        *,
        spatial_dims: int,
        channels: Sequence[int],
        decoder_channels: Sequence[int] = (),
        sites: Mapping[str, SkipSite] | None = None,
        merge: str | Mapping[str, Any] = "concat",
    ) -> None:
        super().__init__()
        pairs = enumerate(zip(channels, decoder_channels, strict=False))
        self.sites = dict({str(i): SkipSite(i, c, d) for i, (c, d) in pairs} if sites is None else sites)
        self.spatial_dims, self.channels = spatial_dims, tuple(channels)
        self.num_levels = 1 + max((site.level for site in self.sites.values()), default=-1)
        self.conditions: Mapping[str, Tensor] = {}
        self.step: Any = None
        self.attached: Any = None  # what `medseg.blocks.skip.attach.attach_skips` added
        self.calibrated: int | None = None  # which edit `medseg.blocks.skip.scale.calibrate` added
        self.pyramid, self.edits, self.merges = nn.ModuleList(), nn.ModuleList(), nn.ModuleDict()
        self.pyramid_levels: list[list[int]] = []
        parts = skip_settings(settings)
        self.extend(parts)
        for name, site in self.sites.items():
            facts = {**self._facts(site), "skip_channels": site.channels}
            self.merges[name] = _build(MERGES, parts["merge"] or _part(merge), facts)
        self.out_channels = {name: int(cast(Any, merge).out_channels) for name, merge in self.merges.items()}

    def extend(self, settings: SkipSettings) -> None:
        """Append pyramid operations and edits; they are named as if the path had been built with them."""
        parts = skip_settings(settings)
        for setting in parts["pyramid"]:
            levels = _levels(setting.pop("levels", None), len(self.channels))
            seen = {"channels": [self.channels[i] for i in levels], "num_levels": self.num_levels}
            facts = {"spatial_dims": self.spatial_dims, **seen}
            self.pyramid.append(_build(PYRAMID, setting, facts))
            self.pyramid_levels.append(levels)
        for setting in parts["edit"]:
            levels = _levels(setting.pop("levels", None), self.num_levels)
            sites = {name: site for name, site in self.sites.items() if site.level in levels}
            if setting.pop("include_bottleneck", False):
                sites[BOTTLENECK] = self._bottleneck()
            built = {name: _build(EDITS, setting, self._facts(site)) for name, site in sites.items()}
            self.edits.append(nn.ModuleDict(built))

    @property
    def needs_all_features(self) -> bool:
        """Whether some part looks at all levels or at the deepest one, so that a host must compute every feature."""
        return bool(self.pyramid) or any(BOTTLENECK in cast(nn.ModuleDict, edit) for edit in self.edits)

    @property
    def needs(self) -> dict[str, int]:
        """Name -> channels of the conditions that its parts look at, see `skip_conditions`."""
        return {
            name: count for part in self.modules() for name, count in getattr(part, "conditions_needed", {}).items()
        }

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Encoder features, finest first, each (B, C_l, *S_l) -> the same shapes after the pyramid operations."""
        features = list(features)
        for operation, levels in zip(self.pyramid, self.pyramid_levels, strict=True):
            changed = operation(tuple(features[i] for i in levels), self._context(levels[0]))
            for level, feature in zip(levels, changed, strict=True):
                features[level] = feature
        for edit in self.edits:
            if BOTTLENECK in cast(nn.ModuleDict, edit):
                bottleneck = cast(nn.ModuleDict, edit)[BOTTLENECK]
                features[-1] = bottleneck(features[-1], None, self._context(self.num_levels))
        return features

    def join(self, site: int | str, skip: Tensor, decoder: Tensor) -> Tensor:
        """skip (B, C, *S), decoder (B, D, *S) -> (B, out_channels[site], *S): this site's edits, then its merge."""
        name = str(site)
        context = self._context(self.sites[name].level)
        for edit in self.edits:
            if name in cast(nn.ModuleDict, edit):
                skip = cast(nn.ModuleDict, edit)[name](skip, decoder, context)
        return self.merges[name](skip, decoder, context)

    def keep_sites(self, names: set[str]) -> None:
        """Drop the parts of all other sites."""
        for parts in (*cast(Sequence[nn.ModuleDict], self.edits), self.merges):
            for name in set(parts) - names:
                del parts[name]
        self.sites = {name: site for name, site in self.sites.items() if name in names}
        self.out_channels = {name: count for name, count in self.out_channels.items() if name in names}

    def _context(self, level: int) -> SkipContext:
        return SkipContext(level, self.num_levels, self.spatial_dims, self.conditions, self.step)

    def _facts(self, site: SkipSite) -> dict[str, Any]:
        return {**site._asdict(), "spatial_dims": self.spatial_dims, "num_levels": self.num_levels}

    def _bottleneck(self) -> SkipSite:
        if len(self.channels) == self.num_levels:
            raise UsageError("include_bottleneck: this network passes no bottleneck to its skip path")
        return SkipSite(self.num_levels, self.channels[-1], 0)


def skip_settings(settings: SkipSettings) -> dict[str, Any]:
    """Every form of skip settings -> ``{"pyramid": [{"name", ...}], "edit": [{"name", ...}], "merge": {"name", ...}}``.

    The merge is None where none is named.

    Raises:
        UsageError: of another form, an unknown key, with the nearest known one, or a part without a name.
    """
    if not isinstance(settings, str | Mapping | None):
        raise UsageError(f"skips is {settings!r} (expected the name of a merge, or a mapping of {', '.join(ROLES)})")
    given = {"merge": settings} if isinstance(settings, str) else dict(settings or {})
    for key in given:
        if key not in ROLES:
            raise UsageError(f"skips has no key '{key}': {nearest(key, ROLES)}")
    chains = {role: [_part(one) for one in _listed(given.get(role))] for role in ("pyramid", "edit")}
    return {**chains, "merge": _part(given["merge"]) if given.get("merge") else None}


def skip_path(model: nn.Module) -> SkipPath:
    """The skip path of a model. Raises UsageError if it hosts none."""
    path = getattr(model, "skips", None)
    if not isinstance(path, SkipPath):
        raise UsageError(f"{type(model).__name__} hosts no skip path", fix="use a model that takes the argument skips")
    return path


@contextmanager
def skip_conditions(model: nn.Module, *, step: Any = None, **conditions: Tensor) -> Iterator[None]:
    """Within the context, the parts of the model's skip path see these conditions.

    Args:
        model: hosts a skip path.
        step: of an outer iteration.
        conditions: name -> (B, C, *S), of any resolution, e.g. ``prior=mask``.
    """
    path = skip_path(model)
    before = path.conditions, path.step
    path.conditions, path.step = conditions, step
    try:
        yield
    finally:
        path.conditions, path.step = before


def _listed(parts: Any) -> list[Any]:
    if isinstance(parts, str | Mapping) and parts:
        return [parts]
    if parts and not isinstance(parts, list | tuple):
        raise UsageError(f"skips: {parts!r} is no list of parts (expected names, or mappings with name and arguments)")
    return list(parts or ())


def _part(setting: Any) -> dict[str, Any]:
    part = {"name": setting} if isinstance(setting, str) else dict(setting) if isinstance(setting, Mapping) else {}
    if not isinstance(part.get("name"), str):
        raise UsageError(f"skips: {setting!r} has no name (expected a name, or a mapping with name and arguments)")
    return part


def _levels(given: Sequence[int] | None, count: int) -> list[int]:
    if given is None:
        return list(range(count))
    numbers = isinstance(given, list | tuple) and all(type(level) is int and 0 <= level < count for level in given)
    if not given or not numbers:
        raise UsageError(f"skips: levels is {given!r} (must be numbers of 0..{count - 1}, 0 = finest)")
    return sorted(set(given))


def _build(registry: Registry, setting: Mapping[str, Any], facts: Mapping[str, Any]) -> Any:
    """A part from its setting, with those facts about its place that it takes.

    Constructors compute with what they are given: a setting that they cannot compute with is the user's to mend.
    """
    arguments = dict(setting)
    name = arguments.pop("name")
    known = registry.arguments(name)
    for key in arguments:
        if key in facts:
            raise UsageError(f"{registry.kind} '{name}': '{key}' follows from its place and cannot be set")
    try:
        return registry.build(name, **{key: value for key, value in facts.items() if key in known}, **arguments)
    except (TypeError, ValueError, AttributeError, ArithmeticError, LookupError, RuntimeError) as error:
        raise cannot_be_built(f"{registry.kind} '{name}'", arguments, error) from error
