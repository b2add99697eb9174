"""Writes label maps for annotation tools and trainers: COCO's JSON, and Label Studio's tasks.

    <out>/coco.json            images, categories, and for each class of an image one mask
    <out>/label-studio.json    tasks with a prediction: for each class of an image one brush mask
    <out>/label-studio.xml     the labelling configuration that those need

Both are made from the label maps of the output folder, one image at a time, and hold every pixel
as it is there. Void pixels are in none.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, TextIO
from urllib.parse import quote
from xml.sax.saxutils import quoteattr  # nosec B406  # it writes XML

import numpy as np
import numpy.typing as npt

from fcn_client.predict.outputs import Folder
from fcn_client.predict.writer import Record, replacing
from fcn_client.types import ClassInfo, UInt8Array

FORMATS: Final = ("coco", "label-studio")
LOCAL_FILES: Final = "/data/local-files/?d="
"""Label Studio serves the files of its machine there, under LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT.

Source: labelstud.io/guide/storage, local storage.
"""

_NAME: Final = "classes"
_IMAGE: Final = "image"
Mask = npt.NDArray[np.bool_]


def annotate(folder: Folder, formats: Sequence[str], image_url: str = LOCAL_FILES) -> None:
    """Writes what `formats` names of FORMATS, whole or not at all. image_url: in Label Studio, what
    stands before an image's path in the source folder. Raises: FcnError, OSError."""
    if "coco" in formats:
        with replacing(folder.root / "coco.json") as file:
            _coco(file, folder.label_maps(), folder.classes)
    if "label-studio" in formats:
        with replacing(folder.root / "label-studio.json") as file:
            tasks = (
                _task(record, label_map, folder.classes, image_url, folder.model)
                for record, label_map in folder.label_maps()
            )
            file.write("[")
            _join(file, tasks)
            file.write("\n]\n")
        with replacing(folder.root / "label-studio.xml") as file:
            file.write(_configuration(folder.classes))


def _coco(
    file: TextIO, label_maps: Iterable[tuple[Record, UInt8Array]], classes: Sequence[ClassInfo]
) -> None:
    """Writes COCO's file.

    A category's id is the class id plus 1: Datumaro, which CVAT reads COCO with, takes 0 for no
    class. `iscrowd` is 0 with run lengths, as in COCO-Stuff. Source: cocodataset.org, format-data.
    """
    images: list[dict[str, Any]] = []

    def annotations() -> Iterator[dict[str, Any]]:
        number = 0
        for index, (record, label_map) in enumerate(label_maps, 1):
            height, width = label_map.shape
            images.append(
                {"id": index, "file_name": _file(record), "height": height, "width": width}
            )
            for info, mask in _masks(label_map, classes):
                number += 1
                rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
                top, left = int(rows[0]), int(columns[0])
                yield {
                    "id": number,
                    "image_id": index,
                    "category_id": info.id + 1,
                    "iscrowd": 0,
                    "area": int(mask.sum()),
                    "bbox": [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1],
                    "segmentation": {"size": [height, width], "counts": coco_counts(mask)},
                }

    categories = [{"id": c.id + 1, "name": c.name, "supercategory": ""} for c in classes]
    file.write(f'{{"info": {{}}, "licenses": [], "categories": {json.dumps(categories)},')
    file.write('\n"annotations": [')
    _join(file, annotations())
    file.write('\n],\n"images": [')  # known only now
    _join(file, images)
    file.write("\n]}\n")


def _task(
    record: Record,
    label_map: UInt8Array,
    classes: Sequence[ClassInfo],
    image_url: str,
    model: str,
) -> dict[str, Any]:
    """Makes one task. Source: labelstud.io, guide/predictions and tags/brushlabels."""
    height, width = label_map.shape
    result = [
        {
            "id": f"class-{info.id}",
            "type": "brushlabels",
            "from_name": _NAME,
            "to_name": _IMAGE,
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": {"format": "rle", "rle": brush_bytes(mask), "brushlabels": [info.name]},
        }
        for info, mask in _masks(label_map, classes)
    ]
    return {
        "data": {_IMAGE: image_url + quote(_file(record))},
        "predictions": [{"model_version": model, "result": result}],
    }


def _configuration(classes: Sequence[ClassInfo]) -> str:
    labels = "".join(
        f'    <Label value={quoteattr(c.name)} background="#{bytes(c.color).hex()}"/>\n'
        for c in classes
    )
    return (
        f'<View>\n  <Image name="{_IMAGE}" value="${_IMAGE}" zoom="true"/>\n'
        f'  <BrushLabels name="{_NAME}" toName="{_IMAGE}">\n{labels}  </BrushLabels>\n</View>\n'
    )


def coco_counts(mask: Mask) -> list[int]:
    """Counts the runs down the columns, beginning with pixels that are not in the mask.

    Source: cocoapi, common/maskApi.h.
    """
    flat = mask.ravel(order="F")
    counts = [int(n) for n in np.diff(_bounds(flat))]
    return [0, *counts] if flat[0] else counts


_SIZES: Final = np.array([4, 8, 12, 16])


def brush_bytes(mask: Mask) -> list[int]:
    """Packs the mask, row by row, each pixel four bytes (RGBA) of 0 or 255, as Label Studio does.

    The number of bytes (32 bits), the bits of a value less one (5), four sizes of lengths less one
    (4 each). Then for each run a 1, which of the sizes (2), the length less one, the value.
    Source: thi.ng/rle-pack, README.
    """
    flat = mask.ravel()
    bounds = _bounds(flat)
    lengths, values = 4 * np.diff(bounds), 255 * flat[bounds[:-1]].astype(np.int64)
    # What is longer than the largest size has room for becomes several runs.
    most = 1 << int(_SIZES[-1])
    parts = -(-lengths // most)
    rest = lengths - (parts - 1) * most
    lengths = np.full(int(parts.sum()), most)
    lengths[np.cumsum(parts) - 1] = rest
    values = np.repeat(values, parts)

    which = np.searchsorted(1 << _SIZES, lengths)
    size = _SIZES[which]
    runs = ((((4 | which) << size) | (lengths - 1)) << 8) | values
    width = 3 + size + 8
    place = np.arange(int(width.max()))
    used = place < width[:, None]
    bits = (runs[:, None] >> np.maximum(width[:, None] - 1 - place, 0)) & 1
    header = f"{4 * flat.size:032b}{7:05b}" + "".join(f"{n - 1:04b}" for n in _SIZES)
    start = np.frombuffer(header.encode(), np.uint8) - ord("0")
    packed: list[int] = np.packbits(np.concatenate([start, bits[used]]).astype(np.uint8)).tolist()
    return packed


def _bounds(flat: Mask) -> npt.NDArray[np.int64]:
    """Returns the places where runs begin, and the end."""
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    return np.concatenate([[0], changes, [flat.size]])


def _masks(label_map: UInt8Array, classes: Sequence[ClassInfo]) -> Iterator[tuple[ClassInfo, Mask]]:
    present = set(np.unique(label_map).tolist())
    for info in classes:
        if info.id in present:
            yield info, label_map == info.id


def _file(record: Record) -> str:
    """Names the file; a frame has none, and is called as its outputs are."""
    return record.source if record.frame is None else f"{record.name}.png"


def _join(file: TextIO, rows: Iterable[Any]) -> None:
    comma = ""
    for row in rows:
        file.write(f"{comma}\n{json.dumps(row)}")
        comma = ","
