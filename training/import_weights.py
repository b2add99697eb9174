"""Weights of other programs into start weights for training, or a checkpoint to evaluate."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from model.backbones.base import Backbone
from model.build import BackboneName, NetworkSpec, build
from model.fcn import Variant
from model.surgery import Report, convolutions, fit_layers, shapes_of, transplant
from model.weights.head import (
    HEAD_LAYERS,
    SCORES,
    check_variant,
    fold_scales,
    inner_upsamplings,
    upsampling_of,
)
from model.weights.layers import LayerWeights, WeightsError
from model.weights.names import NETWORKS, NORMALISATION, Normalisation
from model.weights.read import read_weights
from model.weights.start import write_start_weights
from training.checkpoint import Checkpoint, save_checkpoint
from training.datasets import DatasetInfo
from training.datasets.folder import load_info
from training.revision import git_revision

VOC_CLASSES = Path(__file__).parent / "datasets" / "sbd.yaml"


@dataclass(frozen=True, slots=True)
class Imported:
    """What came of an import. `normalisation`: of which pixels the weights were learned."""

    report: Report
    normalisation: Normalisation
    sha256: str
    """of the file that was read"""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "sha256": self.sha256,
            "normalisation": self.normalisation,
            "layers": [row._asdict() for row in self.report.rows],
        }


def import_start_weights(
    path: Path, out: Path, *, network: str, normalisation: Normalisation | None = None
) -> Imported:
    """Backbone weights from `path`, a classifier or an FCN, to `out`, for `init.imagenet`.

    `normalisation` None: what the file's convention implies.
    Raises: WeightsError naming the layers that are missing or do not fit; OSError.
    """
    layers, normalisation = _read(path, network, normalisation)
    with torch.device("meta"):
        backbone = build(_spec(network, layers), 1).backbone
    wanted = shapes_of(backbone, convolutions(backbone))
    fitted, report = fit_layers(layers, wanted, NETWORKS[network].dropped | HEAD_LAYERS)
    report.require(str(path))
    write_start_weights(out, fitted, network=network, normalisation=normalisation)
    return Imported(report, normalisation, _sha256(path))


def import_checkpoint(
    path: Path,
    out: Path,
    *,
    network: str,
    variant: Variant,
    padding: str = "pad100",
    normalisation: Normalisation | None = None,
    dataset: DatasetInfo | None = None,
    name: str | None = None,
) -> Imported:
    """A whole FCN from `path`, such as the authors' released files, to the checkpoint `out`.

    The released nets were trained with `pad100`. `dataset`: the classes of its scores, in order;
    None: VOC's 21, which the released nets learned from SBD.
    Raises: WeightsError naming the layers that are missing or do not fit; OSError.
    """
    dataset = dataset or load_info(VOC_CLASSES)
    layers, normalisation = _read(path, network, normalisation)
    try:
        check_variant(layers, variant)
        layers = fold_scales(layers)
        upsampling = upsampling_of(layers, variant)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    spec = dataclasses.replace(
        _spec(network, layers),
        variant=variant,
        upsampling=upsampling,
        padding=cast(Any, padding),
        normalisation=normalisation,
    )
    fcn = build(spec, len(dataset.classes))
    needed = _paths(fcn.backbone) | {score: score for score in SCORES[variant]}
    if upsampling == "learned":
        needed |= {layer: layer for layer in inner_upsamplings(variant)}
    dropped = NETWORKS[network].dropped | HEAD_LAYERS
    report = transplant(fcn, layers, needed, dropped=dropped, source=str(path))
    sha256 = _sha256(path)
    config = {
        "name": name or f"{spec.architecture}-imported",
        "network": dataclasses.asdict(spec),
        "imported": {"file": path.name, "sha256": sha256},
    }
    checkpoint = Checkpoint(
        network=spec,
        dataset=dataset,
        config=config,
        git_revision=git_revision(),
        iteration=0,
        weights=fcn.state_dict(),
        ema=None,
        optimizer={},
        random_states=[torch.get_rng_state()],
        best_mean_iu=0.0,
        val_scores=None,
    )
    save_checkpoint(out, checkpoint)
    return Imported(report, normalisation, sha256)


def _read(
    path: Path, network: str, normalisation: Normalisation | None
) -> tuple[LayerWeights, Normalisation]:
    """By the network's names. Raises: WeightsError."""
    if network not in NETWORKS:
        raise WeightsError(f"no names are known for {network!r}: want {', '.join(NETWORKS)}")
    file = read_weights(path)
    normalisation = normalisation or NORMALISATION.get(file.convention)
    if normalisation is None:
        raise WeightsError(
            f"{path} does not say of which pixels its weights were learned: say --normalisation "
            "caffe or torchvision"
        )
    layers = NETWORKS[network].renamed(file.layers, file.convention)
    if len(layers) != len(file.layers):
        raise WeightsError(f"{path}: two of its layers are the same one of {network}")
    return layers, normalisation


def _spec(network: str, layers: LayerWeights) -> NetworkSpec:
    """VGG16 with as many channels in fc6 and fc7 as the file has."""
    fc6 = layers.get("fc6")
    width = None
    if network == "vgg16" and fc6 is not None and fc6.bias is not None:
        width = max(1, fc6.bias.size)
    return NetworkSpec(cast(BackboneName, network), fc6_channels=width)


def _paths(backbone: Backbone) -> dict[str, str]:
    return {layer: f"backbone.{path}" for layer, path in convolutions(backbone).items()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
