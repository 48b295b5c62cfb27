"""Files: the only place that opens them, and the only door for unpickling, extracting and loading weights."""

from medseg.io.adapter_folder import find_adapter, load_adapter, model_fingerprint, save_adapter
from medseg.io.archives import extract
from medseg.io.arrays import load_array, save_array
from medseg.io.atomic import atomic_path, require_writable, to_json, write_json, write_text
from medseg.io.checkpoint import load_checkpoint, save_checkpoint
from medseg.io.dicom import holds_dicom
from medseg.io.dicom_seg import check_segment_names, require_dicom_seg, write_dicom_seg
from medseg.io.download import download
from medseg.io.endings import KNOWN_ENDINGS, file_ending, label_ending
from medseg.io.label_coding import LabelCoding
from medseg.io.library_images import volume_of
from medseg.io.memory import free_memory
from medseg.io.model_folder import load_model, save_model
from medseg.io.onnx_folder import holds_onnx, load_onnx, save_onnx
from medseg.io.readers import (
    finite_voxels,
    read_channels,
    read_geometry,
    read_labels,
    read_volume,
    write_labels,
    write_volume,
)
from medseg.io.sidecar import read_json
from medseg.io.volume import Geometry, Volume, from_canonical, to_canonical

__all__ = [
    "KNOWN_ENDINGS",
    "Geometry",
    "LabelCoding",
    "Volume",
    "atomic_path",
    "check_segment_names",
    "download",
    "extract",
    "file_ending",
    "find_adapter",
    "finite_voxels",
    "free_memory",
    "from_canonical",
    "holds_dicom",
    "holds_onnx",
    "label_ending",
    "load_adapter",
    "load_array",
    "load_checkpoint",
    "load_model",
    "load_onnx",
    "model_fingerprint",
    "read_channels",
    "read_geometry",
    "read_json",
    "read_labels",
    "read_volume",
    "require_dicom_seg",
    "require_writable",
    "save_adapter",
    "save_array",
    "save_checkpoint",
    "save_model",
    "save_onnx",
    "to_canonical",
    "to_json",
    "volume_of",
    "write_dicom_seg",
    "write_json",
    "write_labels",
    "write_text",
    "write_volume",
]
