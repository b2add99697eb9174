"""Runs an exported ONNX file as a predictor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

from model.contract import Contract
from training.datasets.base import UInt8Array
from training.evaluation.evaluate import EvaluationError


class OnnxPredictor:
    """Runs ONNX Runtime on one whole image at a time; on CUDA where this build and machine have
    it."""

    def __init__(self, path: Path, threads: int = 0) -> None:
        """Open the file; `threads` are those of one run, 0 leaves the choice to the runtime.

        Raises: EvaluationError if the file cannot be loaded, ContractError if it has no contract.
        """
        if not path.is_file():
            raise EvaluationError(f"there is no file {path}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # its warnings about graph passes are not for us
        known = set(onnxruntime.get_available_providers())
        providers = [p for p in ("CUDAExecutionProvider", "CPUExecutionProvider") if p in known]
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # its exceptions share no base class below Exception
            raise EvaluationError(f"{path} cannot be loaded as an ONNX model: {error}") from error
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.contract = Contract.from_metadata(metadata, str(path))
        self._path = path

    def __call__(self, image: UInt8Array, /) -> UInt8Array:
        """Predict the image padded with zeros to sides that the network takes, as the server does.

        Raises: EvaluationError if the runtime refuses the image.
        """
        spec = self.contract.input
        height, width = image.shape[:2]
        sides = (max(side, spec.min_side_px) for side in (height, width))
        below, right = (-(-side // spec.multiple_of_px) * spec.multiple_of_px for side in sides)
        padded = np.pad(image, ((0, below - height), (0, right - width), (0, 0)))
        try:
            (label_maps,) = self._session.run(
                [self.contract.outputs.label_map], self.contract.feeds(padded[None])
            )
        except Exception as error:  # as above
            raise EvaluationError(
                f"{self._path} fails on an image of {image.shape[0]}x{image.shape[1]}: {error}"
            ) from error
        return np.asarray(label_maps[0, :height, :width], np.uint8)
