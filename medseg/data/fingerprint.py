"""The facts of a dataset that a plan is made from: sizes, spacings, intensities, classes, left-right asymmetry."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from medseg.data.dataset import Case, SegmentationDataset
from medseg.data.keys import case_key, digest, require_cache
from medseg.data.laterality import left_right_axis, side_offsets
from medseg.data.parallel import choose_workers, map_cases
from medseg.data.read_case import check_image, check_labels, read_case_image, read_label_file
from medseg.errors import BadDataset, MedsegError, UnreadableFile
from medseg.io import Volume, read_json, to_canonical, write_json
from medseg.io.atomic import to_json

FINGERPRINT_VERSION = 2  # part of the cache's key: raise it when the facts change
SAMPLES_PER_CASE = 10_000


@dataclass(frozen=True)
class CaseFacts:
    """One case in canonical orientation (RAS+); voxels and mm."""

    id: str
    shape: tuple[int, ...]
    cropped_shape: tuple[int, ...]  # after a crop to the voxels that are not zero in every channel
    spacing: tuple[float, ...]
    minimum: tuple[float, ...]  # per channel, over the whole image
    maximum: tuple[float, ...]
    zero_fraction: tuple[float, ...]  # per channel: share of voxels that are exactly 0
    integers: tuple[bool, ...]  # per channel: only whole numbers
    voxels: dict[int, int]  # label value -> voxels; only labels that occur
    offsets: dict[int, float]  # label value -> laterality.side_offsets


Measured = tuple[CaseFacts, np.ndarray]  # and (C, n) intensities of its foreground


@dataclass(frozen=True)
class Fingerprint:
    """Facts of all cases; ``intensities`` pools foreground samples of all cases, one dict per channel."""

    dataset: str
    spatial_dims: int
    channel_names: tuple[str, ...]
    labels: dict[str, int]
    ignore_label: int | None
    cases: tuple[CaseFacts, ...]
    intensities: tuple[dict[str, float], ...]  # mean, std, percentile_00_5, percentile_99_5, min, max
    color: str = "keep"  # what pictures are brought to

    @property
    def class_frequencies(self) -> dict[int, float]:
        """Label value -> share of all voxels."""
        total = sum(int(np.prod(case.shape)) for case in self.cases)
        values = sorted(set(self.labels.values()))
        return {value: sum(case.voxels.get(value, 0) for case in self.cases) / total for value in values}

    def save(self, path: str | Path) -> None:
        """Write the facts as JSON, atomically."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: str | Path) -> Fingerprint:
        """Read what ``save`` wrote; `UnreadableFile` if it is damaged."""
        return cls.from_dict(read_json(path))

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Fingerprint:
        """From what JSON holds of it."""
        cases = tuple(_case_from_dict(case) for case in facts["cases"])
        listed = {name: tuple(facts[name]) for name in ("channel_names", "intensities")}
        return cls(**{**facts, **listed, "cases": cases})


def make_fingerprint(
    dataset: SegmentationDataset,
    case_ids: Sequence[str] | None = None,
    *,
    cache_dir: str | Path | None = None,
    workers: int | str | None = None,
    progress: bool = True,
) -> Fingerprint:
    """Read the training cases once and collect their facts.

    Args:
        dataset: what to look at.
        case_ids: only these cases, e.g. the training part of a fold; default all.
        cache_dir: keep the facts in ``cache_dir/<dataset>/`` and read them there while no file has changed.
        workers: processes; default chosen from the amount of data, cores and memory.
        progress: show a progress bar.

    Raises:
        InputRefused: a case cannot be used; the first one is named.
        BadDataset: there is no case.
    """
    cases = [dataset.case(id_) for id_ in case_ids] if case_ids is not None else list(dataset.training)
    if not cases:
        raise BadDataset("there is no training case", path=dataset.root, fix="add images with labels")
    if cache_dir is None:
        return _make(dataset, cases, workers, progress)
    key = _key(dataset, cases)
    path = Path(cache_dir).expanduser() / dataset.name / f"fingerprint-{key[:16]}.json"
    cached = _read_cached(path, key)
    if cached is not None:
        return cached
    require_cache(path.parent)
    fingerprint = _make(dataset, cases, workers, progress)
    if _key(dataset, cases) == key:  # else a file changed meanwhile: whose facts these are is not known
        facts = json.loads(to_json(asdict(fingerprint)))
        write_json(path, {"key": key, "sha256": digest(facts), "fingerprint": facts})
    return fingerprint


def _key(dataset: SegmentationDataset, cases: Sequence[Case]) -> str:
    """SHA-256 over all that a fingerprint is made from: the state of the files, and what is known of the dataset."""
    known = [dataset.name, dataset.labels, dataset.ignore_label, list(dataset.channel_names), dataset.spatial_dims]
    return digest([FINGERPRINT_VERSION, *known, dataset.color, sorted(map(case_key, cases))])


def _read_cached(path: Path, key: str) -> Fingerprint | None:
    """The facts that were kept, if they are there, undamaged and made from these files."""
    try:
        kept = read_json(path)
        if kept["key"] == key and kept["sha256"] == digest(kept["fingerprint"]):
            return Fingerprint.from_dict(kept["fingerprint"])
    except (UnreadableFile, KeyError, TypeError):
        pass
    return None


def _make(
    dataset: SegmentationDataset, cases: Sequence[Case], workers: int | str | None, progress: bool
) -> Fingerprint:
    measure = partial(_read_and_measure, what=Measure.of(dataset))
    found: dict[str, Measured] = {}
    count = choose_workers(workers, cases)
    for case, result in map_cases(measure, cases, workers=count, title="fingerprint", progress=progress):
        if isinstance(result, MedsegError):
            raise result
        found[case.id] = result
    return pool_facts(dataset, found)


def pool_facts(dataset: SegmentationDataset, found: Mapping[str, Measured]) -> Fingerprint:
    """The fingerprint of cases (id -> what was measured). Raises BadDataset: none of them has foreground."""
    ordered = [found[id_] for id_ in sorted(found)]  # results arrive in any order; the facts must not depend on it
    return Fingerprint(
        dataset=dataset.name,
        spatial_dims=dataset.spatial_dims,
        channel_names=tuple(dataset.channel_names),
        labels=dict(dataset.labels),
        ignore_label=dataset.ignore_label,
        cases=tuple(facts for facts, _ in ordered),
        intensities=_pool([samples for _, samples in ordered]),
        color=dataset.color,
    )


def nonzero_box(array: np.ndarray) -> tuple[tuple[int, int], ...]:
    """The smallest box, as (start, stop) per spatial axis, that holds every voxel of (C, *S) that is not 0.

    An image of zeros alone keeps its whole extent.
    """
    mask = (array != 0).any(axis=0)
    box = []
    for axis in range(mask.ndim):
        hits = np.flatnonzero(mask.any(axis=tuple(i for i in range(mask.ndim) if i != axis)))
        box.append((int(hits[0]), int(hits[-1]) + 1) if hits.size else (0, mask.shape[axis]))
    return tuple(box)


@dataclass(frozen=True)
class Measure:
    """What a dataset's cases must be, and which of their labels are classes; picklable, for worker processes."""

    labels: Mapping[str, int]
    ignore_label: int | None
    channels: int
    color: str
    spatial_dims: int

    @classmethod
    def of(cls, dataset: SegmentationDataset) -> Measure:
        """For a dataset's cases."""
        channels = len(dataset.channel_names)
        return cls(dataset.labels, dataset.ignore_label, channels, dataset.color, dataset.spatial_dims)

    @property
    def known(self) -> frozenset[int]:
        """Label values that may occur."""
        return frozenset({0, *self.labels.values(), *([] if self.ignore_label is None else [self.ignore_label])})

    def __call__(self, case: Case, volume: Volume, labels: Volume) -> Measured:
        """Facts of one case, and (C, n) intensities sampled from its foreground.

        Raises:
            InputRefused: the case must not be trained on, as `medseg.data.read_case` says.
        """
        check_image(case, volume, self.channels, self.spatial_dims)
        check_labels(case, labels, volume.geometry, self.known)
        mask, image = to_canonical(labels.array, volume.geometry)[0], volume.canonical()
        values = [value for value in self.labels.values() if value not in (0, self.ignore_label)]
        axes = tuple(range(1, image.array.ndim))
        return CaseFacts(
            id=case.id,
            shape=image.spatial_shape,
            cropped_shape=tuple(stop - start for start, stop in nonzero_box(image.array)),
            spacing=tuple(float(mm) for mm in image.spacing),
            minimum=tuple(float(x) for x in image.array.min(axis=axes)),
            maximum=tuple(float(x) for x in image.array.max(axis=axes)),
            zero_fraction=tuple(float(x) for x in (image.array == 0).mean(axis=axes)),
            integers=tuple(bool((channel == np.round(channel)).all()) for channel in image.array),
            voxels=_count(mask),
            offsets=side_offsets(image.array[0], mask, values, left_right_axis(image.ndim)),
        ), _sample(image.array, np.isin(mask, values), case.id)


def _read_and_measure(case: Case, *, what: Measure) -> Measured:
    return what(case, read_case_image(case, what.color), read_label_file(case))


def _count(mask: np.ndarray) -> dict[int, int]:
    values, counts = np.unique(mask, return_counts=True)
    return {int(value): int(count) for value, count in zip(values, counts, strict=True)}


def _sample(array: np.ndarray, foreground: np.ndarray, case_id: str) -> np.ndarray:
    """(C, n) intensities at random foreground voxels; the same ones in every run."""
    positions = np.flatnonzero(foreground)
    if positions.size > SAMPLES_PER_CASE:
        positions = np.random.default_rng(zlib.crc32(case_id.encode())).choice(positions, SAMPLES_PER_CASE)
    return array.reshape(len(array), -1)[:, positions]


def _pool(samples: Sequence[np.ndarray]) -> tuple[dict[str, float], ...]:
    pooled = np.concatenate(samples, axis=1).astype(np.float64)
    if pooled.shape[1] == 0:
        fix = "check that the label files were exported with their values"
        raise BadDataset("no case has a single foreground voxel", fix=fix)
    low, high = np.percentile(pooled, (0.5, 99.5), axis=1)
    statistics = {
        "mean": pooled.mean(axis=1),
        "std": pooled.std(axis=1),
        "percentile_00_5": low,
        "percentile_99_5": high,
        "min": pooled.min(axis=1),
        "max": pooled.max(axis=1),
    }
    return tuple({name: float(values[c]) for name, values in statistics.items()} for c in range(len(pooled)))


def _case_from_dict(facts: dict[str, Any]) -> CaseFacts:
    """JSON has lists and string keys where a case has tuples and label values."""
    plain: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in facts.items()}
    for name in ("voxels", "offsets"):
        plain[name] = {int(value): fact for value, fact in plain[name].items()}
    return CaseFacts(**plain)
