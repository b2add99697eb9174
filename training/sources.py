"""What `fcn evaluate` can score: a checkpoint, an ONNX file or a running server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import torch

from model.modality import RGB, Modality
from training.analysis.masking import Shown, show
from training.checkpoint import load_checkpoint
from training.datasets import DatasetInfo, SegmentationDataset
from training.evaluate import EvaluationError, check_classes, evaluate, evaluate_files
from training.metrics import Confusion
from training.predictors import FilePredictor, NetworkPredictor, Predictor
from training.ranks import ALONE, Ranks

KINDS = "a checkpoint (.pt), an exported model (.onnx), or a server (http://, https://, grpc://)"


@dataclass(frozen=True, slots=True)
class Source:
    """Where label maps come from. Exactly one of the two predictors is set."""

    name: str
    kind: str
    """`checkpoint`, `onnx`, `rest` or `grpc`"""
    class_names: tuple[str, ...]
    """Of the first or only head."""
    predict: Predictor | None = None
    predict_file: FilePredictor | None = None
    modality: Modality = RGB
    geometric_names: tuple[str, ...] = ()
    """Of the second head, if there is one."""
    close: Callable[[], None] = lambda: None
    """Ends the connections to a server."""

    def confusion(
        self,
        data: SegmentationDataset,
        *,
        shown: Shown = "all",
        in_flight: int = 4,
        progress: bool = True,
        ranks: Ranks = ALONE,
    ) -> Confusion:
        """Over the whole split, its pictures masked as `shown` says and shared among the
        processes.

        Raises: EvaluationError, DatasetError.
        """
        self._check_kind(data.info)
        check_classes(self.class_names, self.name, data.info)
        data = show(data, shown)
        if self.predict_file is not None:
            if shown != "all":
                raise EvaluationError(
                    f"{self.name} gets the image files as they are: to show {shown} only, give the "
                    "checkpoint or the ONNX file"
                )
            return evaluate_files(
                self.predict_file, data, in_flight=in_flight, progress=progress, ranks=ranks
            )
        if self.predict is None:
            raise EvaluationError(f"{self.name} has no predictor")
        return evaluate(self.predict, data, progress=progress, ranks=ranks)

    def _check_kind(self, info: DatasetInfo) -> None:
        """Raises: EvaluationError."""
        if self.modality != info.modality:
            raise EvaluationError(
                f"{self.name} takes {self.modality} pictures, but the data set gives "
                f"{info.modality}: choose --dataset, as nyudv2_rgbd"
            )
        names = tuple(entry.name for entry in info.geometric)
        if self.geometric_names != names:
            raise EvaluationError(
                f"{self.name} has {_labellings(self.geometric_names)}, the data set "
                f"{_labellings(names)}: choose --dataset, as siftflow or siftflow_both"
            )


def _labellings(geometric: tuple[str, ...]) -> str:
    return "a geometric labelling beside the semantic" if geometric else "one labelling"


def open_source(
    text: str, *, model: str | None = None, threads: int = 0, api_key: str | None = None
) -> Source:
    """`text`: as KINDS says; a server's URL may end in `?model=NAME`, which `model` overrides.

    `threads`: of the CPU for a checkpoint or an ONNX file; 0 leaves the choice to the library.
    `api_key`: for a server that wants one, visible ASCII.
    Raises: EvaluationError, CheckpointError, ContractError.
    """
    parts = urlsplit(text)
    if parts.scheme in ("http", "https", "grpc"):
        return _server(text, model, api_key)
    if model is not None:
        raise EvaluationError(f"--model is for servers, and {text} is a file")
    if api_key is not None:
        raise EvaluationError(f"--api-key-file is for servers, and {text} is a file")
    path = Path(text)
    if parts.scheme and len(parts.scheme) > 1 and not path.exists():
        raise EvaluationError(f"{text}: want {KINDS}")
    if path.suffix == ".pt":
        return _checkpoint(path, threads)
    if path.suffix == ".onnx":
        from training.onnx_predictor import OnnxPredictor

        onnx = OnnxPredictor(path, threads)
        return Source(str(path), "onnx", onnx.contract.class_names, predict=onnx)
    raise EvaluationError(f"{text}: want {KINDS}")


def _checkpoint(path: Path, threads: int) -> Source:
    checkpoint = load_checkpoint(path)
    if threads:
        torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # the current one
    network = checkpoint.build_network().to(device)
    names = [tuple(info.name for info in classes) for classes in checkpoint.dataset.heads.values()]
    return Source(
        str(path),
        "checkpoint",
        names[0],
        predict=NetworkPredictor(network),
        modality=checkpoint.network.modality,
        geometric_names=names[1] if len(names) > 1 else (),
    )


def _server(url: str, model: str | None, api_key: str | None) -> Source:
    parts = urlsplit(url)
    query = parse_qs(parts.query)
    if set(query) - {"model"}:
        raise EvaluationError(f"{url}: of a query only ?model=NAME has a meaning")
    if not parts.netloc:
        raise EvaluationError(f"{url}: want scheme://host:port")
    name = model or query.get("model", [None])[0]
    bare = parts._replace(query="", fragment="").geturl()
    if parts.scheme == "grpc":
        from training.grpc_predictor import GrpcPredictor

        rpc = GrpcPredictor(bare, name, api_key)
        return Source(bare, "grpc", rpc.model.class_names, predict_file=rpc, close=rpc.close)
    from training.rest_predictor import RestPredictor

    rest = RestPredictor(bare, name, api_key)
    return Source(bare, "rest", rest.model.class_names, predict_file=rest, close=rest.close)
