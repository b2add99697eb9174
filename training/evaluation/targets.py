"""Opens what `fcn evaluate` can score: a checkpoint, an ONNX file or a running server."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import parse_qs, urlsplit

import torch

from model.modality import RGB, Modality
from training.analysis.masking import Mask, mask_images
from training.checkpoint import load_checkpoint
from training.datasets import DatasetInfo, SegmentationDataset
from training.datasets.base import UInt8Array
from training.distributed import SINGLE, World
from training.evaluation.audit import Audit
from training.evaluation.evaluate import (
    Evaluation,
    EvaluationError,
    check_classes,
    evaluate,
)
from training.evaluation.onnx_predictor import OnnxPredictor
from training.evaluation.predictors import NetworkPredictor, Predictor

if TYPE_CHECKING:  # the client that it needs is not everybody's
    from fcn_client.trust import TlsFiles
    from training.evaluation.server import ServerPredictor

DEADLINE_S = 120.0
"""Limit for a server's answer: a large image on a busy CPU may take long, a hung server is no
answer."""

KINDS = (
    "a checkpoint (.pt), an exported model (.onnx), or a server (http://, https://, grpc://, "
    "grpcs://)"
)

ClassNames = dict[str, tuple[str, ...]]
"""Names in order of their ids, by head."""


@dataclass(frozen=True, slots=True)
class NetworkTarget:
    """Runs a network in this process."""

    name: str
    kind: Literal["checkpoint", "onnx"]
    class_names: ClassNames
    predict: Predictor
    modality: Modality = RGB

    def close(self) -> None:
        """Do nothing: there is nothing to give back."""


@dataclass(frozen=True, slots=True)
class ServerTarget:
    """Asks a model behind an address, which gets the image files as they are."""

    name: str
    kind: Literal["rest", "grpc"]
    class_names: ClassNames
    predict: ServerPredictor
    modality: Modality = RGB

    def close(self) -> None:
        """End the connections."""
        self.predict.close()


EvaluationTarget = NetworkTarget | ServerTarget


def score(
    target: EvaluationTarget,
    data: SegmentationDataset,
    *,
    mask: Mask = "all",
    in_flight: int = 4,
    progress: bool = True,
    world: World = SINGLE,
    audit: Audit | None = None,
) -> Evaluation:
    """Evaluate the whole split, its images masked by `mask` and shared among the processes.

    `in_flight`: files that a server is asked for at a time. `audit` gets each image's counts.
    Raises: EvaluationError, DatasetError.
    """
    _check_heads(target, data.info)
    check_classes(next(iter(target.class_names.values())), target.name, data.info)
    data = mask_images(data, mask)
    if audit is not None and world.size > 1:
        raise EvaluationError("a report is written by one process: leave torchrun out")
    if isinstance(target, NetworkTarget):
        confusion = evaluate(target.predict, data, progress=progress, world=world, audit=audit)
        return Evaluation(confusion, len(data))
    if mask != "all":
        raise EvaluationError(
            f"{target.name} gets the image files as they are: to keep {mask} only, give the "
            "checkpoint or the ONNX file"
        )
    if world.size > 1:
        raise EvaluationError("a server is asked by one process: leave torchrun out")
    from training.evaluation.server import evaluate_files

    return evaluate_files(target.predict, data, in_flight=in_flight, progress=progress, audit=audit)


def predict_again(target: EvaluationTarget, data: SegmentationDataset, index: int) -> UInt8Array:
    """Predict one image of what was scored. Raises: EvaluationError, DatasetError."""
    if isinstance(target, NetworkTarget):
        return target.predict(data[index].image)
    return target.predict(data.pairs[index][0])


def _check_heads(target: EvaluationTarget, info: DatasetInfo) -> None:
    """Refuse a target of other channels or labellings than the data. Raises: EvaluationError."""
    if target.modality != info.modality:
        raise EvaluationError(
            f"{target.name} takes {target.modality} images, but the data set gives "
            f"{info.modality}: choose --dataset, as nyudv2_rgbd"
        )
    if list(target.class_names) != list(info.heads):
        raise EvaluationError(
            f"{target.name} has {_labellings(target.class_names)}, the data set "
            f"{_labellings(info.heads)}: choose --dataset, as siftflow or siftflow_both"
        )


def _labellings(heads: Iterable[str]) -> str:
    names = list(heads)
    return f"the labellings {' and '.join(names)}" if len(names) > 1 else "one labelling"


def open_target(
    text: str,
    *,
    model: str | None = None,
    threads: int = 0,
    api_key: str | None = None,
    tls: TlsFiles | None = None,
    deadline_s: float = DEADLINE_S,
    flip: bool = False,
) -> EvaluationTarget:
    """Open the target that `text` names as KINDS says; a server's URL may end in `?model=NAME`,
    which `model` overrides.

    `threads`: of the CPU for a checkpoint or an ONNX file; 0 leaves the choice to the library.
    `api_key`: for a server that wants one, visible ASCII. `tls`: files for it.
    `deadline_s`: for a server's answer.
    `flip`: see `NetworkPredictor`, for a checkpoint alone.
    Raises: EvaluationError, CheckpointError, ContractError, FcnError.
    """
    if flip and not text.lower().endswith(".pt"):
        raise EvaluationError(f"--flip is for a checkpoint (.pt): {text} gives labels alone")
    parts = urlsplit(text)
    if parts.scheme in ("http", "https", "grpc", "grpcs"):
        return _server(text, model, api_key, tls or {}, deadline_s)
    if model is not None:
        raise EvaluationError(f"--model is for servers, and {text} is a file")
    if api_key is not None:
        raise EvaluationError(f"--api-key-file is for servers, and {text} is a file")
    if any((tls or {}).values()):
        raise EvaluationError(f"--ca, --cert and --key are for servers, and {text} is a file")
    path = Path(text)
    if parts.scheme and len(parts.scheme) > 1 and not path.exists():
        raise EvaluationError(f"{text}: want {KINDS}")
    if path.suffix.lower() == ".pt":
        return _checkpoint(path, threads, flip)
    if path.suffix.lower() == ".onnx":
        onnx = OnnxPredictor(path, threads)
        return NetworkTarget(str(path), "onnx", {"": onnx.contract.class_names}, onnx)
    raise EvaluationError(f"{text}: want {KINDS}")


def _checkpoint(path: Path, threads: int, flip: bool) -> NetworkTarget:
    checkpoint = load_checkpoint(path)
    if threads:
        torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # the current one
    network = checkpoint.build_network().to(device)
    predict = NetworkPredictor(network, flip=flip)
    return NetworkTarget(
        str(path),
        "checkpoint",
        checkpoint.dataset.class_names,
        predict,
        checkpoint.network.modality,
    )


def _server(
    url: str, model: str | None, api_key: str | None, tls: TlsFiles, deadline_s: float
) -> ServerTarget:
    parts = urlsplit(url)
    query = parse_qs(parts.query)
    if set(query) - {"model"}:
        raise EvaluationError(f"{url}: of a query only ?model=NAME has a meaning")
    if not parts.netloc:
        raise EvaluationError(f"{url}: want scheme://host:port")
    name = model or query.get("model", [None])[0]
    bare = parts._replace(query="", fragment="").geturl().rstrip("/")
    from training.evaluation.server import ServerPredictor

    predict = ServerPredictor(bare, name, api_key=api_key, tls=tls, deadline_s=deadline_s)
    kind: Literal["rest", "grpc"] = "grpc" if parts.scheme.startswith("grpc") else "rest"
    return ServerTarget(bare, kind, {"": predict.class_names}, predict)
