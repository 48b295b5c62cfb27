"""Uncertainty against closed forms, and as a map in the grid of the file."""

import nibabel as nib
import numpy as np
import pytest
import torch

from medseg.data.dataset import Case
from medseg.errors import UsageError
from medseg.inference import Predictor, predict_cases
from medseg.inference.uncertainty import mutual_information, predictive_entropy
from medseg.io import Geometry, Volume


def probabilities(*values):
    return torch.tensor(values).view(1, len(values), 1)


def test_entropy_is_one_where_all_classes_are_alike_and_zero_where_one_is_certain():
    assert predictive_entropy([probabilities(0.25, 0.25, 0.25, 0.25)]).item() == pytest.approx(1)
    assert predictive_entropy([probabilities(0.0, 1.0, 0.0)]).item() == 0
    assert predictive_entropy([probabilities(0.5)]).item() == pytest.approx(1)  # one sigmoid channel
    assert predictive_entropy([probabilities(1.0), probabilities(0.0)]).item() == pytest.approx(1)


def test_members_that_agree_share_no_information_and_those_that_disagree_all():
    unsure = probabilities(0.5, 0.5)
    assert mutual_information([unsure, unsure]).item() == 0
    assert mutual_information([probabilities(1.0, 0.0), probabilities(0.0, 1.0)]).item() == pytest.approx(1)


def test_a_map_on_the_grid_of_the_file(threshold_predictor, tmp_path):
    image = np.zeros((10, 9, 8), np.float32)
    image[3:6, 2:5, 1:4], image[8, 8, 7] = 1, 0.5  # at 0.5 the network cannot decide
    affine = np.diag([-1.0, 1.0, 1.0, 1.0])
    nib.save(nib.Nifti1Image(image, affine), tmp_path / "case.nii.gz")
    predictor = Predictor(threshold_predictor().members, uncertainty="entropy")
    predict_cases(predictor, [Case("case", (tmp_path / "case.nii.gz",))], tmp_path / "out", progress=False)
    written = nib.load(tmp_path / "out" / "case_entropy.nii.gz")
    assert np.array_equal(written.affine, affine)
    doubt = written.get_fdata()
    assert doubt[8, 8, 7] == pytest.approx(1, abs=1e-5)
    assert np.delete(doubt.ravel(), doubt.argmax()).max() < 1e-3


def test_what_cannot_be_measured(threshold_predictor):
    members = threshold_predictor().members
    with pytest.raises(UsageError, match="needs an ensemble"):
        Predictor(members, uncertainty="mutual_information")
    with pytest.raises(UsageError, match="entropy"):
        Predictor(members, uncertainty="entrophy")
    case = Volume(np.ones((1, 8, 8, 8), np.float32), Geometry((8, 8, 8), np.eye(4)))
    assert Predictor(members * 2, uncertainty="mutual_information").predict(case).uncertainty.max() == 0
    assert Predictor(members).predict(case).uncertainty is None
