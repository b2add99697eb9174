"""From a checkpoint to a model that a server can load: contract, ONNX file and model card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from model.contract import Contract, InputSpec, OutputSpec
from model.export.export import export
from model.export.network_from_onnx import network_from_onnx
from model.export.parity import ParityReport
from model.modality import RGB
from model.network import SegmentationNetwork
from training.checkpoint import Checkpoint, load_checkpoint
from training.evaluation.scales import with_range

_METRICS = ("pixel_accuracy", "mean_accuracy", "mean_iu", "frequency_weighted_iu")


class PublishError(ValueError):
    """A model cannot be put into the repository; the message says why."""


def publish(
    checkpoint_path: Path,
    repository: Path,
    *,
    name: str | None = None,
    version: int | None = None,
    logits: bool = False,
    winograd: Sequence[str] = (),
    scores: Path | None = None,
    overwrite: bool = False,
) -> tuple[Path, ParityReport]:
    """Write `<repository>/<name>/<version>/model.onnx` and the card `<name>/README.md`.

    `name` defaults to the config's, `version` to the one after the highest there is. `scores` is
    what `fcn evaluate --json` printed; its numbers go into the contract and the card, after the
    val scores that training measured. `winograd`: see `export`.
    In place of a checkpoint, an fp32 file that was exported before is exported anew, say with
    logits: what it knows stays, and so does the card.
    Raises: PublishError, CheckpointError, ContractError, ExportError, NetworkFromOnnxError,
    WinogradError.
    """
    if checkpoint_path.suffix.lower() == ".onnx":
        if scores is not None:
            raise PublishError("--scores is for a checkpoint: an exported file keeps its own")
        network, contract = network_from_onnx(checkpoint_path)
        name = name or contract.model_name
        path = _free_path(repository / name, version, overwrite)
        outputs = replace(contract.outputs, logits="logits" if logits else None)
        contract = replace(contract, model_name=name, outputs=outputs)
        contract, report = export(network, contract, path, winograd=winograd)
        return path, report
    checkpoint = load_checkpoint(checkpoint_path)
    measured = _read_scores(scores) if scores else None
    network = _served(checkpoint, checkpoint_path)
    name = name or str(checkpoint.config["name"])
    path = _free_path(repository / name, version, overwrite)
    contract = make_contract(checkpoint, network, name, logits=logits, measured=measured)
    contract, report = export(network, contract, path, winograd=winograd)
    card = repository / name / "README.md"
    card.write_text(model_card(checkpoint, contract, measured))
    return path, report


def _free_path(folder: Path, version: int | None, overwrite: bool) -> Path:
    """Name the file of a version to write, by default of the next. Raises: PublishError."""
    path = folder / str(version or next_version(folder)) / "model.onnx"
    if path.exists() and not overwrite:
        raise PublishError(f"{path} exists: choose another --version or say --overwrite")
    return path


def _served(checkpoint: Checkpoint, path: Path) -> SegmentationNetwork:
    """Picks what a server can run of it: of two heads the semantic one.

    Raises: PublishError if it takes more than an RGB image, CheckpointError.
    """
    modality = checkpoint.network.modality
    if modality != RGB:
        raise PublishError(
            f"{path} takes {modality} images, and a server is sent RGB ones: it cannot be "
            "exported, but `fcn evaluate` scores it as it is"
        )
    network = checkpoint.build_network()
    first, *others = network.heads
    return network.only(first) if others else network


def make_contract(
    checkpoint: Checkpoint,
    network: SegmentationNetwork,
    name: str,
    *,
    logits: bool = False,
    measured: dict[str, Any] | None = None,
) -> Contract:
    """Make a contract. Scores are named `<split>_<metric>`, in 0..1. Raises: ContractError."""
    scores = {}
    for split, values in _splits(checkpoint, measured):
        scores.update({f"{split}_{metric}": round(values[metric], 6) for metric in _METRICS})
    backbone = network.backbone
    spec = with_range(
        InputSpec(stride=32, min_side_px=backbone.min_side_px, max_side_px=backbone.max_side_px),
        (measured or {}).get("input_range"),
    )
    return Contract(
        model_name=name,
        architecture=checkpoint.network.architecture,
        classes=checkpoint.dataset.classes,
        training_data=checkpoint.dataset.data,
        input=spec,
        outputs=OutputSpec(logits="logits" if logits else None),
        scores=scores,
        git_revision=checkpoint.git_revision,
        precision="fp32",
        format_version=spec.format_version,
    )


def model_card(checkpoint: Checkpoint, contract: Contract, measured: dict[str, Any] | None) -> str:
    """Write Markdown: what the model is, what it was trained on, how, and how well it does."""
    data = contract.training_data
    imported = checkpoint.config.get("imported")
    origin = (
        f"Imported from `{imported['file']}` (SHA-256 `{imported['sha256']}`) by revision"
        if imported
        else "Trained with revision"
    )
    trained = "" if imported else f", {checkpoint.iteration} iterations"
    lines = [
        f"# {contract.model_name}",
        "",
        f"- Architecture: {contract.architecture}, {len(contract.classes)} classes, "
        f"{contract.precision}; {_known_sizes(contract.input)}.",
        f"- Training data: {data.name}. Source: {data.source or 'not given'}.",
        f"- Licence of the data, which binds the weights: **{data.licence}**.",
        f"- {origin} `{checkpoint.git_revision}`{trained}; exported {date.today().isoformat()}.",
        "- Served size: any; the label map has the size of the image.",
        "",
        "## Scores",
        "",
        "Whole images at their own size, one scale, no flip; void pixels excluded; one confusion "
        "matrix over the split.",
        "",
    ]
    splits = _splits(checkpoint, measured)
    lines += _table(["metric", *(split for split, _ in splits)], [
        [
            metric.replace("_", " ").replace("iu", "IU"),
            *(f"{100 * values[metric]:.2f}" for _, values in splits),
        ]
        for metric in _METRICS
    ])  # fmt: skip
    lines += ["", "IU per class, in percent:", ""]
    lines += _table(["class", *(split for split, _ in splits)], [
        [info.name, *(_percent(values["class_iu"][info.name]) for _, values in splits)]
        for info in contract.classes
    ])  # fmt: skip
    if measured and measured.get("scales"):
        lines += scale_section(measured["scales"], str(measured["split"]))
    if not imported:
        lines += _recipe(checkpoint, measured["split"] if measured else "test")
    return "\n".join([*lines, ""])


def _known_sizes(spec: InputSpec) -> str:
    if spec.range_px is None:
        return "made for images of about the size it was trained on"
    first, learned, last = spec.range_px
    return f"for images of {first} to {last} px in the longer side; others are scaled to {learned}"


def scale_section(scales: Sequence[Mapping[str, Any]], split: str) -> list[str]:
    """Write the section of the card on sizes, of what `fcn evaluate --scales --json` prints."""
    heading = f"Mean IU of images of {split}, enlarged and reduced bicubically:"
    return ["", "## Sizes", "", heading, "", *_table(
        ["scale", "longer side [px]", "mean IU [%]"],
        [[f"{s['scale']:g}", str(s["longer_side_px"]), _percent(s["mean_iu"])] for s in scales],
    )]  # fmt: skip


def _recipe(checkpoint: Checkpoint, split: str) -> list[str]:
    """Write the section of the card that says how to train the model again, and score it."""
    config = shared_config(checkpoint.config)
    return [
        "",
        "## Recipe",
        "",
        "```yaml",
        yaml.safe_dump(config, sort_keys=False).strip(),
        "```",
        "",
        "```",
        "fcn train RECIPE.yaml --run RUN --set data.root=DATA init.imagenet=WEIGHTS",
        f"fcn evaluate RUN/last.pt --data-root DATA --dataset {config['data']['dataset']} "
        f"--split {split} --json > scores.json",
        "fcn export RUN/last.pt --scores scores.json",
        "```",
    ]


def shared_config(config: dict[str, Any]) -> dict[str, Any]:
    """Copy a config without what only this machine has: folders become their last part."""
    shared: dict[str, Any] = json.loads(json.dumps(config))
    shared["data"].pop("root", None)
    for section, field in (
        ("data", "classes"),
        ("init", "imagenet"),
        ("init", "checkpoint"),
        ("init", "hha_checkpoint"),
        ("distill", "teacher"),
        ("distill", "maps"),
    ):
        if section not in shared:  # a config from before there were teachers
            continue
        if shared[section].get(field):
            shared[section][field] = Path(shared[section][field]).name
        else:
            shared[section].pop(field, None)
    if not {"teacher", "maps"} & shared.get("distill", {}).keys():
        shared.pop("distill", None)
    return shared


def _splits(
    checkpoint: Checkpoint, measured: dict[str, Any] | None
) -> list[tuple[str, dict[str, Any]]]:
    """List the scores by their splits, without those on images that were learned from; those
    measured on val take the place of what training measured on it."""
    splits = []
    data = checkpoint.config.get("data", {})
    known = [*data.get("train_split", "").split("+")]
    known += [measured["split"]] if measured else []
    if checkpoint.val_scores is not None and data.get("val_split") not in known:
        splits.append(("val", checkpoint.val_scores))
    if measured is not None:
        splits.append((str(measured["split"]), measured))
    return splits


def _read_scores(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise PublishError(f"cannot read the scores {path}: {error}") from error
    if not isinstance(raw, dict):
        raise PublishError(f"{path} is not what `fcn evaluate --json` prints")
    if missing := [key for key in ("split", *_METRICS, "class_iu") if key not in raw]:
        raise PublishError(f"{path} is not what `fcn evaluate --json` prints: no {missing[0]!r}")
    return raw


def next_version(folder: Path) -> int:
    """Count one above the highest version of the model whose folder this is."""
    if not folder.is_dir():
        return 1
    taken = [int(entry.name) for entry in folder.iterdir() if entry.name.isdecimal()]
    return max(taken, default=0) + 1


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    return [
        "| " + " | ".join(header) + " |",
        "|" + "---|" * len(header),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]
