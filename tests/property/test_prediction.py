"""Painted phantoms of any shape, orientation and obliqueness come back in the same voxels of the same grid.

150 examples; MEDSEG_THOROUGH=1 draws 1,000.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from medseg.inference import Predictor
from medseg.io import Geometry, read_geometry, write_volume
from medseg.io.volume import Volume

THOROUGH = os.environ.get("MEDSEG_THOROUGH") == "1"
EXAMPLES = 1000 if THOROUGH else 150
pytestmark = pytest.mark.timeout(3600 if THOROUGH else 300)
SIZES = st.integers(1, 15)
ENDINGS = st.sampled_from([".nii", ".nii.gz", ".mha", ".nrrd"])
PATCHES = st.tuples(*[st.sampled_from([4, 6, 8])] * 3)


@st.composite
def affines(draw: st.DrawFn) -> np.ndarray:
    """Any permutation and flip of the axes, turned by up to 40 degrees about any axis, any spacing and origin."""
    order = draw(st.permutations(range(3)))
    signs = draw(st.tuples(*[st.sampled_from([-1, 1])] * 3))
    angle = draw(st.floats(0, 40)) * draw(st.sampled_from([0, 1]))
    about = np.add(draw(st.tuples(*[st.floats(-1, 1)] * 3)), (0, 0, 1e-3))
    turn = Rotation.from_rotvec(np.deg2rad(angle) * about / np.linalg.norm(about)).as_matrix()
    spacing = draw(st.tuples(*[st.floats(0.3, 6)] * 3))
    affine = np.eye(4)
    affine[:3, :3] = turn @ (np.eye(3)[:, order] * signs) * spacing
    affine[:3, 3] = draw(st.tuples(*[st.floats(-500, 500)] * 3))
    return affine


def paint(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Voxels at random, so that no flip, shift or transposition goes unseen."""
    return (np.random.default_rng(seed).random(shape) < 0.4).astype(np.uint8)


@given(affines(), st.tuples(SIZES, SIZES, SIZES), PATCHES, ENDINGS, st.booleans(), st.integers(0, 99))
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_same_voxels_come_back(
    threshold_predictor: Callable[..., Predictor],
    affine: np.ndarray,
    shape: tuple[int, int, int],
    patch: tuple[int, int, int],
    ending: str,
    crop: bool,
    seed: int,
) -> None:
    mask, geometry = paint(shape, seed), Geometry(shape, affine)
    predictor = threshold_predictor(
        spacing=list(geometry.canonical().spacing), patch_size=list(patch), crop_nonzero=crop
    )
    with tempfile.TemporaryDirectory() as folder:
        source, result = Path(folder) / f"image{ending}", Path(folder) / f"labels{ending}"
        write_volume(source, Volume(mask[None], geometry))
        segmentation = predictor.predict(source)
        segmentation.save(result)
        np.testing.assert_array_equal(segmentation.labels, mask)
        written = read_geometry(result)
        assert written.shape == shape
        # ITK divides a NRRD's vectors into spacing and direction, which costs the last bit.
        np.testing.assert_allclose(written.affine, read_geometry(source).affine, rtol=0, atol=1e-12)
        if ending.startswith(".nii"):
            np.testing.assert_array_equal(np.asarray(nib.load(result).dataobj).reshape(shape), mask)


@given(affines(), st.tuples(*[st.integers(2, 5)] * 3), st.tuples(*[st.sampled_from([0.5, 1.0, 2.0])] * 3))
@settings(max_examples=EXAMPLES // 5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_block_survives_resampling_in_its_place(
    threshold_predictor: Callable[..., Predictor],
    affine: np.ndarray,
    corner: tuple[int, int, int],
    ratio: tuple[float, float, float],
) -> None:
    """A block of even size at an even place, at a model's spacing of half, equal or double the image's."""
    geometry = Geometry((16, 16, 16), affine)
    mask = np.zeros(geometry.shape, np.float32)
    mask[tuple(slice(2 * start, 2 * start + 4) for start in corner)] = 1
    spacing = np.array(geometry.canonical().spacing) * ratio
    segmentation = threshold_predictor(spacing=spacing.tolist()).predict(Volume(mask[None], geometry))
    interior = np.zeros_like(mask, bool)
    interior[tuple(slice(2 * start + 1, 2 * start + 3) for start in corner)] = True
    assert segmentation.labels[interior].all()
    around = np.zeros_like(mask, bool)
    around[tuple(slice(max(0, 2 * start - 1), 2 * start + 5) for start in corner)] = True
    assert not segmentation.labels[~around].any()
