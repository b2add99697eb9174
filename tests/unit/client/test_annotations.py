"""`fcn predict --annotations`: what annotation tools read back is the label map, to the pixel."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as arrays
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from cli.main import main
from fcn_client.predict.annotations import brush_bytes, coco_counts
from tests.drawing import animated_gif, png, read_png, street
from tests.tiny_models import CLASSES, write_model

# Of pycocotools' own arrays.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

MASKS = arrays.arrays(np.bool_, arrays.array_shapes(min_dims=2, max_dims=2, max_side=30))
NAMES = [c.name for c in CLASSES]


def unpacked(data: list[int]) -> npt.NDArray[np.uint8]:
    """Decodes as thi.ng/rle-pack, and so Label Studio, does: flattened RGBA.

    Source: thi.ng/rle-pack, README: a run is a 1, a copy of single values a 0 in front.
    """
    bits = "".join(f"{byte:08b}" for byte in data)
    at = 0

    def read(n: int) -> int:
        nonlocal at
        at += n
        assert at <= len(bits), "more is read than there is"
        return int(bits[at - n : at], 2)

    total, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    out: list[int] = []
    while len(out) < total:
        repeats, length = read(1), 0
        length = read(sizes[read(2)]) + 1
        out += [read(word)] * length if repeats else [read(word) for _ in range(length)]
    assert len(out) == total and len(bits) - at < 8
    return np.array(out, np.uint8)


def check(mask: npt.NDArray[np.bool_]) -> None:
    rgba = unpacked(brush_bytes(mask)).reshape(*mask.shape, 4)
    for channel in range(4):
        np.testing.assert_array_equal(rgba[..., channel], 255 * mask)
    height, width = mask.shape
    counts = coco_counts(mask)
    packed = coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    np.testing.assert_array_equal(coco_mask.decode(packed), mask)


@settings(max_examples=60, deadline=None)
@given(MASKS)
def test_any_mask_is_read_back(mask: npt.NDArray[np.bool_]) -> None:
    check(mask)


def test_runs_longer_than_a_length_has_room_for() -> None:
    """The largest length is 65536 bytes, 16384 pixels."""
    for pixels in (16383, 16384, 16385, 3 * 16384, 70000):
        mask = np.zeros((2, pixels), np.bool_)
        mask[1] = True
        check(mask)
    assert len(brush_bytes(np.ones((1000, 1000), np.bool_))) < 300


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FCN_INTRA_OP_THREADS", "1")
    monkeypatch.setenv("FCN_INSTANCES", "1")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models"), "tiny", 1)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    (folder / "a b&c.png").write_bytes(png(street(seed=1)))
    (folder / "deep" / "b.png").write_bytes(png(street(20, 30, seed=3)))
    (folder / "broken.png").write_bytes(png(street())[:100])
    return folder


def predicted(photos: Path, model: Path, *more: str) -> tuple[int, Path]:
    """With broken.png, so the exit code is 1 and the others' annotations are there all the same."""
    out = photos.parent / "out"
    words = [str(photos), "--out", str(out), "--local", str(model), "--recursive", *more]
    return main(["predict", *words, "--json"]), out


def label_maps(out: Path) -> dict[str, npt.NDArray[np.uint8]]:
    folder = out / "label_maps"
    return {
        str(path.relative_to(folder)): read_png(path.read_bytes()) for path in folder.rglob("*.png")
    }


def test_coco(photos: Path, model: Path) -> None:
    code, out = predicted(photos, model, "--annotations", "coco", "--classes", "red,blue")
    assert code == 1
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(out / "coco.json"))
    categories = {c["id"]: c["name"] for c in coco.loadCats(coco.getCatIds())}
    assert categories == {c.id + 1: c.name for c in CLASSES}, "0 is no class to Datumaro"
    maps = label_maps(out)
    images = coco.loadImgs(coco.getImgIds())
    assert [image["file_name"] for image in images] == ["a b&c.png", "deep/b.png"] == sorted(maps)
    for image in images:
        label_map = maps[image["file_name"]]
        assert (image["height"], image["width"]) == label_map.shape
        rebuilt = np.full_like(label_map, 255)
        for row in coco.loadAnns(coco.getAnnIds(imgIds=image["id"])):
            mask = coco.annToMask(row).astype(bool)
            assert row["area"] == mask.sum() and row["iscrowd"] == 0
            packed = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
            assert row["bbox"] == coco_mask.toBbox(packed).tolist()
            rebuilt[mask] = row["category_id"] - 1
        np.testing.assert_array_equal(rebuilt, label_map)
        assert (label_map == 255).any(), "the class that is not kept is in no mask"
    assert len({row["id"] for row in coco.loadAnns(coco.getAnnIds())}) == 4


def test_label_studio(photos: Path, model: Path) -> None:
    _, out = predicted(
        photos, model, "--annotations", "label-studio", "--image-url", "https://images.test/x/"
    )
    tasks: list[dict[str, Any]] = json.loads((out / "label-studio.json").read_text())
    assert [task["data"] for task in tasks] == [
        {"image": "https://images.test/x/a%20b%26c.png"},
        {"image": "https://images.test/x/deep/b.png"},
    ]
    maps = [label_map for _, label_map in sorted(label_maps(out).items())]
    config = ElementTree.fromstring((out / "label-studio.xml").read_text())
    brush = config.find("BrushLabels")
    assert brush is not None
    colors = {label.get("value"): label.get("background") for label in brush.findall("Label")}
    assert colors == {c.name: "#" + bytes(c.color).hex() for c in CLASSES}
    for task, label_map in zip(tasks, maps, strict=True):
        (prediction,) = task["predictions"]
        assert prediction["model_version"] == "tiny 1"
        rebuilt = np.full_like(label_map, 255)
        for result in prediction["result"]:
            assert (result["type"], result["image_rotation"]) == ("brushlabels", 0)
            assert (result["from_name"], result["to_name"]) == (brush.get("name"), "image")
            size = (result["original_height"], result["original_width"])
            assert size == label_map.shape and result["value"]["format"] == "rle"
            mask = unpacked(result["value"]["rle"]).reshape(*size, 4)[..., 3] == 255
            rebuilt[mask] = NAMES.index(result["value"]["brushlabels"][0])
        np.testing.assert_array_equal(rebuilt, label_map)
        ids = [result["id"] for result in prediction["result"]]
        assert len(ids) == len(set(ids)) >= 2


def test_a_resumed_job_has_them_all(photos: Path, model: Path) -> None:
    """Also those that were complete before anybody asked for annotations."""
    predicted(photos, model)
    code, out = predicted(photos, model, "--annotations", "coco,label-studio")
    assert code == 1
    assert len(json.loads((out / "coco.json").read_text())["images"]) == 2
    tasks = json.loads((out / "label-studio.json").read_text())
    assert tasks[0]["data"]["image"] == "/data/local-files/?d=a%20b%26c.png"
    assert list(out.rglob("*.part")) == []


def test_frames_are_called_as_their_outputs(tmp_path: Path, model: Path) -> None:
    (tmp_path / "film.gif").write_bytes(animated_gif(2))
    out = tmp_path / "out"
    words = [str(tmp_path / "film.gif"), "--out", str(out), "--local", str(model)]
    assert main(["predict", *words, "--annotations", "coco"]) == 0
    images = json.loads((out / "coco.json").read_text())["images"]
    assert [image["file_name"] for image in images] == ["film/000000.png", "film/000001.png"]


def test_a_label_map_that_is_damaged_is_told(
    photos: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out = predicted(photos, model)
    (out / "label_maps" / "deep" / "b.png").write_bytes(b"?")
    capsys.readouterr()
    assert predicted(photos, model, "--annotations", "coco,label-studio")[0] == 1
    failed = json.loads(capsys.readouterr().out)["failed"]
    assert [failure["source"] for failure in failed if "--afresh" in failure["error"]] == [
        "deep/b.png"
    ]
    images = json.loads((out / "coco.json").read_text())["images"]
    assert images and "deep/b.png" not in [image["file_name"] for image in images]
    assert len(json.loads((out / "label-studio.json").read_text())) == len(images)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--annotations", "voc"], "--annotations voc: use coco, label-studio, or both"),
        (["--annotations", "coco", "--write", "overlay"], "let --write have label_map"),
        (["--annotations", "coco", "--image-url", "x"], "give both"),
        (["--image-url", "x"], "give both"),
    ],
)
def test_wrong_words(
    photos: Path, model: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predicted(photos, model, *words)[0] == 1
    assert message in capsys.readouterr().err
