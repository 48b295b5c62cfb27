"""A network that ONNX Runtime computes: it stands where a torch network would."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medseg.device import DeviceProfile
from medseg.errors import UnreadableFile, UsageError

logger = logging.getLogger(__name__)


class OnnxNetwork(nn.Module):
    """Maps images to logits through an ONNX Runtime session; it has no parameters and cannot be trained.

    Args:
        network: a serialised ONNX model with one input and one output, e.g. of `medseg.io.load_onnx`.
        device: a CUDA device is used if ONNX Runtime has its provider; everything else runs on the CPU.
        threads: intra-op threads of the CPU.

    Raises:
        UsageError: onnxruntime is not installed.
        UnreadableFile: not a network that ONNX Runtime can run.

    Attributes:
        profile: what it runs on: tensors come from and go to the CPU, in float32 as exported.
    """

    def __init__(self, network: bytes, *, device: torch.device, threads: int) -> None:
        super().__init__()
        try:
            import onnxruntime
        except ImportError as error:
            problem = f"an ONNX model needs onnxruntime ({error})"
            raise UsageError(problem, fix='pip install "medseg[onnx]"') from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        provider = _provider(device, onnxruntime.get_available_providers())
        try:
            self._session = onnxruntime.InferenceSession(network, options, providers=[provider])
        except Exception as error:  # onnxruntime's errors have no base of their own
            problem = f"ONNX Runtime cannot run the network: {' '.join(str(error).split())[:200]}"
            raise UnreadableFile(problem, fix="export it again") from None
        reason = f"ONNX Runtime, {self._session.get_providers()[0]}"
        self.profile = DeviceProfile(torch.device("cpu"), "fp32", False, False, threads, reason)

    def forward(self, image: Tensor) -> Tensor:
        """image (B, C, *S) float32 on the CPU -> logits (B, K, *S) float32 on the CPU."""
        (source,) = self._session.get_inputs()
        (logits,) = self._session.run(None, {source.name: image.contiguous().numpy()})
        return torch.from_numpy(logits)

    def check_shapes(self, image: Sequence[int], logits: Sequence[int]) -> None:
        """Refuse a network of other sizes than its description says.

        Args:
            image: (C, *S) expected of every window.
            logits: (K, *S).

        Raises:
            UnreadableFile: it takes or gives something else.
        """
        found = [list(end.shape[1:]) for end in (*self._session.get_inputs(), *self._session.get_outputs())]
        if found != [list(image), list(logits)]:
            problem = f"the network maps {found[0]} to {found[-1]} (model.json says {list(image)} to {list(logits)})"
            raise UnreadableFile(problem, fix="export it again")


def _provider(device: torch.device, available: Sequence[str]) -> str | tuple[str, dict[str, Any]]:
    if device.type == "cuda" and "CUDAExecutionProvider" in available:
        return "CUDAExecutionProvider", {"device_id": device.index or 0}
    if device.type != "cpu":
        logger.warning("this onnxruntime has no provider for %s: the network runs on the CPU", device.type)
    return "CPUExecutionProvider"
