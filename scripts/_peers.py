"""How MONAI and nnU-Net v2 segment with the network and the windows of a `Member`: called by bench_inference.py.

nnU-Net's own code does all of its work; only the settings that it reads from a model folder are handed to it.
"""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from medseg.inference.member import Member

OVERLAP = 0.5


def monai_logits(member: Member, image: Tensor) -> Tensor:
    """(K, *P) float32 by MONAI's inferer, for an image (C, *P)."""
    from monai.inferers import sliding_window_inference

    patch = member.plan.patch_size
    with torch.inference_mode():
        return sliding_window_inference(image[None], patch, 1, member.network, OVERLAP, "gaussian", sigma_scale=0.125)[
            0
        ]


def nnunet_logits(member: Member, image: Tensor) -> Tensor:
    """(K, *P) float16, as nnU-Net keeps them, by its predictor on the CPU, without mirroring."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(
        OVERLAP, True, False, False, torch.device("cpu"), verbose=False, verbose_preprocessing=False, allow_tqdm=False
    )
    predictor.network = member.network
    predictor.configuration_manager = SimpleNamespace(patch_size=list(member.plan.patch_size))
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=member.target.out_channels)
    return predictor.predict_sliding_window_return_logits(image)


def nnunet_labels(member: Member, array: np.ndarray) -> np.ndarray:
    """Labels (*S) of an array (C, *S) of 1 mm: nnU-Net's predictor and its export to the file's spacing."""
    from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    from medseg.data.preprocess import preprocess
    from medseg.io import Geometry, Volume

    shape = array.shape[1:]
    prepared, _ = preprocess(Volume(array, Geometry(shape, np.eye(4))), member.plan)
    labels = {("background" if value == 0 else name): value for name, value in member.plan.labels.items()}
    resampling = partial(resample_data_or_seg_to_shape, is_seg=False, order=1, order_z=0, force_separate_z=None)
    return convert_predicted_logits_to_segmentation_with_correct_shape(
        nnunet_logits(member, torch.from_numpy(prepared)),
        SimpleNamespace(transpose_forward=[0, 1, 2], transpose_backward=[0, 1, 2]),
        SimpleNamespace(spacing=list(member.plan.spacing), resampling_fn_probabilities=resampling),
        LabelManager(labels, None),
        {
            "spacing": [1.0, 1.0, 1.0],
            "shape_after_cropping_and_before_resampling": shape,
            "shape_before_cropping": shape,
            "bbox_used_for_cropping": [[0, n] for n in shape],
        },
        num_threads_torch=torch.get_num_threads(),
    )
