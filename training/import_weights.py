"""Weights of other programs into start weights for training, or a checkpoint to evaluate."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch

from model.backbones.base import Backbone, BackboneSpec
from model.build import BACKBONES, NetworkSpec, build
from model.fcn import Variant
from model.heads import layer_name
from model.modality import Modality
from model.surgery import Report, convolutions, fit_layers, shapes_of, transplant
from model.weights.head import (
    HEAD_LAYERS,
    STREAMS,
    check_variant,
    fold_scales,
    heads_of,
    modality_of,
    needed_layers,
    upsampling_of,
)
from model.weights.layers import Convention, LayerWeights, WeightsError
from model.weights.read import read_weights
from model.weights.start import write_start_weights
from training.checkpoint import Checkpoint, save_checkpoint
from training.datasets.base import DatasetInfo
from training.datasets.folder import load_info
from training.datasets.siftflow import GEOMETRIC, SEMANTIC
from training.environment import git_revision

_LISTS = Path(__file__).parent / "datasets"
VOC_CLASSES = _LISTS / "sbd.yaml"

RELEASED: dict[int, tuple[Path, str]] = {
    21: (VOC_CLASSES, "caffe"),
    40: (_LISTS / "nyudv2.yaml", "nyudv2"),
    60: (_LISTS / "pascal_context.yaml", "caffe"),
    33: (_LISTS / "siftflow.yaml", "siftflow"),
}
"""The number of classes of the authors' nets tells which they are, in the order of the scores, and
their pixels. Source: voc_layers.py, nyud_layers.py, pascalcontext_layers.py, siftflow_layers.py of
shelhamer/fcn.berkeleyvision.org."""
_GEOMETRIC = _LISTS / "siftflow_geometric.yaml"


@dataclass(frozen=True, slots=True)
class Imported:
    """Tells what came of an import. `preprocessing`: that with which the weights were learned."""

    report: Report
    preprocessing: str
    sha256: str
    """of the file that was read"""

    def to_dict(self) -> dict[str, Any]:
        """Make it ready for JSON."""
        return {
            "sha256": self.sha256,
            "preprocessing": self.preprocessing,
            "layers": [row._asdict() for row in self.report.rows],
        }


def import_start_weights(
    path: Path, out: Path, *, network: str, preprocessing: str | None = None, width: float = 1.0
) -> Imported:
    """Write the backbone of `path`, a classifier or an FCN, to `out`, for `init.imagenet`.

    `preprocessing` None: what the file's convention implies. `width`: of the file's network. A file
    without fc6 and fc7 is for networks of another `fc6_channels` than ImageNet's.
    Raises: WeightsError naming the layers that are missing or do not fit; OSError.
    """
    file = _read(path, network, preprocessing)
    spec = _spec(network, file.layers, width)
    if BACKBONES[network].fc6_is_needed and not {"fc6", "fc7"} & set(file.layers):
        # Convolutions alone. An fc6 and fc7 of another width than the classifier's begin anew.
        spec = dataclasses.replace(spec, fc6_channels=1)
    with torch.device("meta"):
        backbone = build(spec, 1).backbone
    dropped = BACKBONES[network].names.dropped | HEAD_LAYERS
    # Also fc6 and fc7 of another width than ImageNet's, where the file has them.
    wanted = shapes_of(backbone, convolutions(backbone))
    for new in set(wanted) - set(backbone.start_paths()) - set(file.layers):
        del wanted[new]
    fitted, report = fit_layers(file.layers, wanted, dropped)
    report.require(str(path))
    write_start_weights(out, fitted, network=network, preprocessing=file.preprocessing)
    return Imported(report.with_folded(file.folded), file.preprocessing, _sha256(path))


def import_checkpoint(
    path: Path,
    out: Path,
    *,
    network: str,
    variant: Variant,
    padding: str = "pad100",
    preprocessing: str | None = None,
    width: float = 1.0,
    dataset: DatasetInfo | None = None,
    modality: Modality | None = None,
    name: str | None = None,
) -> Imported:
    """Write the whole FCN of `path`, such as the authors' released files, to the checkpoint `out`.

    The released nets were trained with `pad100`. `dataset`: the classes of its scores, in order;
    None: those of the released net with as many classes, see `RELEASED`. `modality` None: what the
    layers tell; a net for HHA has those of one for colour.
    `preprocessing` None: that of the released net, or what the file's convention implies.
    Raises: WeightsError naming the layers that are missing or do not fit; OSError.
    """
    if "padding" not in _known(network).options:
        raise WeightsError(f"there are no files of an FCN over {network}: --head must be none")
    file = _read(path, network, preprocessing)
    try:
        heads = heads_of(file.layers)
        check_variant(file.layers, variant, heads)
        layers, scales = fold_scales(file.layers)
        seen = modality or modality_of(layers)
        # The kernels of the last upsampling tell which of the two kinds of crops a network has.
        with torch.device("meta"):
            odd = build(_spec(network, layers, width, padding), 1).backbone.crops.odd_kernels
        upsampling = upsampling_of(layers, variant, odd, heads)
        pixels = file.preprocessing
        if dataset is None:
            dataset, learned_of = _released(layers, heads)
            if preprocessing is None and file.convention == "caffe":
                pixels = learned_of
        dataset = dataclasses.replace(dataset, modality=seen)
        spec = dataclasses.replace(
            _spec(network, layers, width, padding),
            variant=variant,
            upsampling=upsampling,
            preprocessing=pixels if "preprocessing" in _known(network).options else None,
            modality=seen,
        )
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from error
    fcn = build(spec, dataset.head_sizes)
    needed = _paths(fcn.backbone) | needed_layers(variant, upsampling, heads, seen)
    dropped = BACKBONES[network].names.dropped | HEAD_LAYERS
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
    return Imported(report.with_folded(file.folded | scales), pixels, sha256)


class _File(NamedTuple):
    """Holds layers by the network's names. `folded`: layer that is gone -> the one it went into."""

    layers: LayerWeights
    folded: dict[str, str]
    convention: Convention
    preprocessing: str


def _read(path: Path, network: str, preprocessing: str | None) -> _File:
    """Raises: WeightsError, OSError."""
    spec = _known(network)
    file = read_weights(path)
    try:
        layers, folded = spec.names.read(file)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    pixels = preprocessing or spec.names.implied.get(file.convention)
    choice = " or ".join(spec.preprocessing)
    if pixels is None:
        raise WeightsError(
            f"{path} does not say with which preprocessing its weights were learned: say "
            f"--preprocessing {choice}"
        )
    if pixels not in spec.preprocessing:
        raise WeightsError(
            f"{path} has weights for {pixels} preprocessing, and {network} can only be fed "
            f"{choice}: if they were learned with that, say --preprocessing "
            f"{spec.preprocessing[0]}"
        )
    return _File(layers, folded, file.convention, pixels)


def _released(layers: LayerWeights, heads: tuple[str, ...]) -> tuple[DatasetInfo, str]:
    """Find classes and pixels of the authors' net with as many scores.

    Raises: WeightsError if they have no such net.
    """
    named = layer_name("score_fr", heads[0])
    score = layers.get(named, layers.get(f"score_fr{STREAMS[0]}"))
    classes = 21 if score is None else score.weight.shape[0]
    if classes not in RELEASED:
        raise WeightsError(
            f"{named} has {classes} classes, and the authors' nets have "
            f"{', '.join(map(str, RELEASED))}: name the classes with --classes FILE"
        )
    listed, pixels = RELEASED[classes]
    info = load_info(listed)
    if GEOMETRIC in heads:
        both = {SEMANTIC: info.classes, GEOMETRIC: load_info(_GEOMETRIC).classes}
        info = dataclasses.replace(info, heads=both)
    return info, pixels


def _known(network: str) -> BackboneSpec:
    if network not in BACKBONES:
        raise WeightsError(f"no names are known for {network!r}: want {', '.join(BACKBONES)}")
    return BACKBONES[network]


def _spec(network: str, layers: LayerWeights, width: float, padding: str = "same") -> NetworkSpec:
    """Describe an FCN-32s; one that needs fc6 with as many channels there as the file has."""
    fc6 = layers.get("fc6", layers.get(f"fc6{STREAMS[0]}"))
    channels = None
    if BACKBONES[network].fc6_is_needed and fc6 is not None and fc6.bias is not None:
        channels = max(1, fc6.bias.size)
    return NetworkSpec(
        network, "32s", fc6_channels=channels, padding=cast(Any, padding), width=width
    )


def _paths(backbone: Backbone) -> dict[str, str]:
    """Map the file's layers to the paths of their modules. Of two streams, `color.conv1_1` is the
    file's conv1_1color."""
    paths = {}
    for layer, path in convolutions(backbone).items():
        stream, dot, rest = layer.partition(".")
        of_stream = dot and stream in backbone.streams
        paths[f"{rest}{stream}" if of_stream else layer] = f"backbone.{path}"
    return paths


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
