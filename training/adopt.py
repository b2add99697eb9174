"""Putting a network of any origin into a model repository: class list, version and card."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path

from model.contract import Contract
from model.export.adopt import AdoptError, AdoptOptions, AdoptReport, adopt, open_network
from model.export.adopt.file import MIN_AGREEMENT
from model.export.onnx_file import UInt8Array
from training.datasets.base import read_image
from training.datasets.files import IMAGE_ENDINGS, list_files
from training.datasets.folder import load_info
from training.publish import next_version

_ANTIALIAS_OPSET = 18
"""The first whose Resize can average an image that it makes smaller."""
_MOST_IMAGES, _MOST_PX = 20, 1024
"""Images of the user's that are compared, and the longest side of what is taken of each."""


def adopt_file(
    network_path: Path,
    repository: Path,
    name: str,
    class_list: Path,
    options: AdoptOptions,
    *,
    version: int | None = None,
    output: str | None = None,
    input_layout: str | None = None,
    logits: bool = False,
    architecture: str | None = None,
    min_agreement: float = MIN_AGREEMENT,
    overwrite: bool = False,
    images: Path | None = None,
) -> AdoptReport:
    """Write `<repository>/<name>/<version>/model.onnx` and the card `<name>/README.md`.

    architecture: what the contract calls the network, by default its file's name. images: a folder
    of real ones to compare, beside random ones.
    Raises: AdoptError, ContractError, DatasetError.
    """
    info = load_info(class_list)
    folder = repository / name
    path = folder / str(version or next_version(folder)) / "model.onnx"
    if path.exists() and not overwrite:
        raise AdoptError(f"{path} exists: choose another --version or say --overwrite")
    contract = Contract(
        model_name=name,
        architecture=architecture or network_path.stem,
        classes=info.classes,
        training_data=info.data,
    )
    network = open_network(network_path, output=output, layout=input_layout)
    if options.antialias and (options.size or network.height_px or network.width_px):
        network = open_network(
            network_path, output=output, layout=input_layout, opset=_ANTIALIAS_OPSET
        )
    contract, report = adopt(
        network,
        contract,
        path,
        options,
        logits=logits,
        min_agreement=min_agreement,
        images=_middles(images) if images else (),
    )
    (folder / "README.md").write_text(_card(contract, network_path, options, report))
    return report


def _middles(folder: Path) -> list[UInt8Array]:
    """Reads the first images by name, of large ones the middle."""
    if not folder.is_dir():
        raise AdoptError(f"there is no folder {folder}")
    paths = list_files(folder, IMAGE_ENDINGS)
    if not paths:
        raise AdoptError(f"{folder} holds no image ({', '.join(sorted(IMAGE_ENDINGS))})")
    images = []
    for path in paths[:_MOST_IMAGES]:
        image = read_image(path)
        top, left = (max(0, px - _MOST_PX) // 2 for px in image.shape[:2])
        images.append(image[top : top + _MOST_PX, left : left + _MOST_PX])
    return images


def _card(contract: Contract, network: Path, options: AdoptOptions, report: AdoptReport) -> str:
    """Writes Markdown: what the model is, how it takes its images, and how it was compared."""
    data, pixels = contract.training_data, options.preprocessing
    if report.size:
        served = f"any; every image is resized to {report.size[0]}x{report.size[1]} (height x "
        served += "width) inside the graph, and its scores back"
    else:
        served = f"any; from {report.min_side_px} px" if report.min_side_px > 1 else "any"
        if report.multiple_of_px > 1:
            served += f"; padded with zeros to multiples of {report.multiple_of_px} px"
    lines = [
        f"# {contract.model_name}",
        "",
        f"- Architecture: {contract.architecture}, {len(contract.classes)} classes, "
        f"{contract.precision}.",
        f"- Training data: {data.name}. Source: {data.source or 'not given'}.",
        f"- Licence of the data, which binds the weights: **{data.licence}**.",
        f"- Adopted from `{network.name}` {date.today().isoformat()} by `fcn adopt`.",
        f"- Pixels: {pixels.color_order}, (value * {pixels.scale:g} - mean) / std with mean "
        f"{_listed(pixels.mean)} and std {_listed(pixels.std)}.",
        f"- Served size: {served}. The label map has the size of the image.",
        "",
        *([f"- Output: {_meaning(report)}.", ""] if report.meaning else []),
        "Scores: none measured. `fcn evaluate` with a labelled data set measures them.",
        "",
        "## Compared with the network as it was given",
        "",
        "Normalisation, resizing and arg max in numpy around the network's own file.",
        "",
        "| images | size | equal labels | classes found |",
        "|---|---|---|---|",
        *(
            f"| {row.images} {row.kind} | {row.height}x{row.width} | {row.label_agreement:.4%} "
            f"| {row.classes} |"
            for row in report.compared
        ),
    ]
    if report.warning:
        lines += ["", f"**Warning**: {report.warning}."]
    return "\n".join([*lines, ""])


def _meaning(report: AdoptReport) -> str:
    one = f" of class 1, above {report.threshold:g}" if report.threshold is not None else ""
    return report.meaning + one


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
