"""Makes the service's own choice of engine and precision a target of `fcn evaluate`."""

from __future__ import annotations

from pathlib import Path

from service.config import SegmenterConfig
from service.core.engines.choice import open_network
from service.core.engines.cores import available_cores
from service.core.images.decode import prepare
from service.core.types import Observer, UInt8Array
from service.errors import ServiceError
from training.evaluation.evaluate import EvaluationError
from training.evaluation.targets import NetworkTarget


def open_engine(path: Path, engine: str, precision: str, threads: int) -> NetworkTarget:
    """Opens a model file as a server on the CPU would.

    engine, precision: see `open_network`. threads: of an inference, 0 for all cores.
    Raises: EvaluationError, ModelLoadError.
    """
    if path.suffix.lower() != ".onnx":
        raise EvaluationError(f"--engine and --precision are for a model file, and {path} is none")
    if not path.is_file():
        raise EvaluationError(f"there is no file {path}")
    cores = threads or available_cores()
    config = SegmenterConfig(provider="cpu", engine=engine, precision=precision, instances=1)
    network = open_network(config, cores, Observer(), path)
    spec = network.contract.input

    def predict(image: UInt8Array, /) -> UInt8Array:
        height, width = image.shape[:2]
        try:
            return network.instances[0].run(prepare(image, spec)[None])[0, :height, :width]
        except ServiceError:
            raise
        except Exception as error:  # whatever the runtime raises
            raise EvaluationError(
                f"{network.path} fails on an image of {height}x{width}: {error}"
            ) from error

    name = f"{network.path} in {network.engine}, {network.precision}"
    return NetworkTarget(name, "onnx", {"": network.contract.class_names}, predict)
