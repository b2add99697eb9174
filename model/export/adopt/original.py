"""The network as it was given, in ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import helper

from model.export.adopt.network import Network
from model.export.adopt.options import AdoptError
from model.export.adopt.preprocessing import FloatArray
from model.export.onnx_file import first_line, session


class Original:
    """Takes normalised images and gives the tensor that the network gives."""

    def __init__(self, network: Network) -> None:
        """Raises: AdoptError if ONNX Runtime does not load it."""
        self.network = network
        try:
            self._session = session(network.path)
        except Exception as error:  # its exceptions share no base class below Exception
            raise AdoptError(
                f"{network.path} does not load in ONNX Runtime: {first_line(error)}; export "
                "it with float32 weights and standard operators"
            ) from error

    def run(self, values: FloatArray) -> npt.NDArray[Any]:
        """Runs the network.

        values: float [N,H,W,3] in its channel order; networks of whole numbers get them rounded.

        Raises whatever the runtime raises.
        """
        dtype = helper.tensor_dtype_to_np_dtype(self.network.dtype)
        if dtype.kind in "iu":
            values = np.rint(values)
        if self.network.layout == "NCHW":
            values = values.transpose(0, 3, 1, 2)
        feeds = {self.network.input: np.ascontiguousarray(values, dtype)}
        (result,) = self._session.run([self.network.output], feeds)
        return np.asarray(result)
