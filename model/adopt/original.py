"""The network as it was given, in ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import helper

from model.adopt.errors import AdoptError
from model.adopt.network import Network
from model.adopt.pixels import FloatArray

UInt8Array = npt.NDArray[np.uint8]


class Original:
    """Takes normalised pictures and gives the tensor that the network gives."""

    def __init__(self, network: Network) -> None:
        """Raises: AdoptError if ONNX Runtime does not load it."""
        self.network = network
        try:
            self._session = session(str(network.path))
        except Exception as error:  # its exceptions share no base class below Exception
            raise AdoptError(
                f"{network.path} does not load in ONNX Runtime: {first_line(error)}"
            ) from error

    def run(self, values: FloatArray) -> npt.NDArray[Any]:
        """values: float [N,H,W,3] in the network's channel order; uint8 networks get them rounded.

        Raises whatever the runtime raises.
        """
        dtype = helper.tensor_dtype_to_np_dtype(self.network.dtype)
        if dtype == np.uint8:
            values = np.rint(values)
        if self.network.layout == "NCHW":
            values = values.transpose(0, 3, 1, 2)
        feeds = {self.network.input: np.ascontiguousarray(values, dtype)}
        (result,) = self._session.run([self.network.output], feeds)
        return np.asarray(result)


def session(model: str | bytes) -> Any:
    """On the CPU, silent about what goes wrong: whoever calls is told by an exception."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def draw(random: np.random.Generator, count: int, height: int, width: int) -> UInt8Array:
    """uint8 [N,H,W,3]: patches with some grain, so that not every feature is alike."""
    coarse = random.integers(0, 256, (count, height // 8 + 2, width // 8 + 2, 3), np.uint8)
    large = coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :height, :width]
    grain = random.integers(0, 32, large.shape, np.uint8)
    return np.ascontiguousarray(large // 8 * 7 + grain)
