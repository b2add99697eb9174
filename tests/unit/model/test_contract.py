"""The contract: what comes back from JSON, and which contradictions are refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.contract import (
    FORMAT_VERSION,
    MAX_CLASSES,
    METADATA_KEY,
    PRECISIONS,
    ClassInfo,
    Contract,
    ContractError,
    InputSpec,
    OutputSpec,
    TrainingData,
)
from tests import tiny_models


def contract(**changes: Any) -> Contract:
    fields: dict[str, Any] = {
        "model_name": "toy",
        "architecture": "fcn8s-vgg16",
        "classes": (
            ClassInfo(0, "sky", (70, 130, 180)),
            ClassInfo(1, "road", (128, 64, 128), "drivable"),
            ClassInfo(2, "7", (1, 2, 3)),
        ),
        "training_data": TrainingData("drawn", "CC0-1.0"),
    }
    return Contract(**{**fields, **changes})


# A loaded machine may take long over one example; that is no fault of the contract's.
unhurried = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])

colors = st.tuples(*[st.integers(0, 255)] * 3)
sides = st.integers(1, 10_000)


@st.composite
def contracts(draw: st.DrawFn) -> Contract:
    names = draw(st.lists(st.text(), min_size=1, max_size=5, unique=True))
    low, high = sorted(draw(st.tuples(sides, sides)))
    return Contract(
        model_name=draw(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", fullmatch=True)),
        architecture=draw(st.text()),
        classes=tuple(
            ClassInfo(index, name, draw(colors), draw(st.text()))
            for index, name in enumerate(names)
        ),
        training_data=TrainingData(draw(st.text()), draw(st.text()), draw(st.text())),
        input=InputSpec(
            name=draw(st.text()),
            stride=draw(sides),
            min_side_px=low,
            max_side_px=draw(st.sampled_from([None, high])),
            multiple_of_px=draw(sides),
        ),
        outputs=OutputSpec(draw(st.text()), draw(st.none() | st.text())),
        ignore_index=draw(st.integers(len(names), 255)),
        scores=draw(st.dictionaries(st.text(), st.floats(allow_nan=False, allow_infinity=False))),
        git_revision=draw(st.text()),
        precision=draw(st.sampled_from(PRECISIONS)),
    )


@unhurried
@given(contracts())
def test_json_round_trip(wanted: Contract) -> None:
    assert Contract.from_json(wanted.to_json()) == wanted
    assert Contract.from_json(json.dumps(wanted.to_dict())) == wanted


def test_what_may_be_left_out() -> None:
    raw = contract().to_dict()
    needed = ("model_name", "architecture", "classes", "training_data")
    short = Contract.from_json(json.dumps({name: raw[name] for name in needed}))
    assert short == contract()
    assert (short.ignore_index, short.precision, short.input) == (255, "fp32", InputSpec())


def test_most_classes() -> None:
    classes = tuple(ClassInfo(i, f"c{i}", (i, 0, 0)) for i in range(MAX_CLASSES))
    assert contract(classes=classes).class_names[-1] == "c254"


BAD_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"format_version": FORMAT_VERSION + 1}, "contract format 4 is not understood"),
    ({"model_name": ""}, "model_name ''"),
    ({"model_name": "../secret"}, "model_name '../secret'"),
    ({"model_name": "two words"}, "model_name 'two words'"),
    ({"model_name": "a" * 129}, "at most 128"),
    ({"classes": ()}, r"classes: want 1\.\.255, got 0"),
    (
        {"classes": tuple(ClassInfo(i, f"c{i}", (0, 0, 0)) for i in range(256))},
        r"classes: want 1\.\.255, got 256",
    ),
    ({"classes": (ClassInfo(1, "road", (0, 0, 0)),)}, r"classes\[0\]\.id is 1"),
    ({"classes": (ClassInfo(0, "road", (0, 0)),)}, r"classes\[0\]\.color"),  # type: ignore[arg-type]
    ({"classes": (ClassInfo(0, "road", (0, 0, 256)),)}, r"classes\[0\]\.color"),
    ({"classes": (ClassInfo(0, "road", (-1, 0, 0)),)}, r"classes\[0\]\.color"),
    (
        {"classes": (ClassInfo(0, "road", (0, 0, 0)), ClassInfo(1, "road", (1, 1, 1)))},
        "names repeat",
    ),
    ({"ignore_index": 2}, "ignore_index 2"),
    ({"ignore_index": 256}, "ignore_index 256"),
    ({"input": InputSpec(layout="NCHW")}, "not uint8 NCHW RGB"),
    ({"input": InputSpec(dtype="float32")}, "not float32 NHWC RGB"),
    ({"input": InputSpec(color_order="BGR")}, "not uint8 NHWC BGR"),
    ({"format_version": 0}, "contract format 0 is not understood"),
    ({"input": InputSpec(sizes="sizes")}, r"input\.sizes 'sizes': .* in a contract of format 2"),
    (
        {"input": InputSpec(sizes="image"), "format_version": 2},
        r"input\.sizes 'image': want the name of another input",
    ),
    (
        {"input": InputSpec(learned_side_px=480, range_to_px=960)},
        "learned_side_px, range_from_px and range_to_px go together",
    ),
    (
        {"input": InputSpec(learned_side_px=480, range_from_px=500, range_to_px=960)},
        "want 1 <= range_from_px <= learned_side_px <= range_to_px",
    ),
    (
        {"input": InputSpec(learned_side_px=480, range_from_px=240, range_to_px=960)},
        "in a contract of format 3",
    ),
    ({"input": InputSpec(stride=0)}, "must be >= 1"),
    ({"input": InputSpec(min_side_px=0)}, "must be >= 1"),
    ({"input": InputSpec(multiple_of_px=0)}, "must be >= 1"),
    ({"input": InputSpec(min_side_px=9, max_side_px=8)}, "max_side_px is below min_side_px"),
    ({"precision": "fp8"}, "precision 'fp8'"),
    ({"scores": {"mean_iu": float("nan")}}, r"scores\['mean_iu'\] is nan"),
    ({"scores": {"mean_iu": float("inf")}}, r"scores\['mean_iu'\] is inf"),
    ({"scores": {"mean_iu": True}}, r"scores\['mean_iu'\] is True"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_FIELDS)
def test_contradictions_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        contract(**changes)


def _set(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(raw: dict[str, Any]) -> None:
        target: Any = raw
        for key in path[:-1]:
            target = target[key]
        target[path[-1]] = value

    return change


def _drop(*path: Any) -> Callable[[dict[str, Any]], None]:
    def change(raw: dict[str, Any]) -> None:
        target: Any = raw
        for key in path[:-1]:
            target = target[key]
        del target[path[-1]]

    return change


BAD_JSON: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (_set("format_version", value=99), "contract format 99 is not understood"),
    (_set("format_version", value=True), "contract.format_version: want int, got True"),
    (_set("format_version", value=1.0), "contract.format_version: want int, got 1.0"),
    (_drop("model_name"), "contract: field 'model_name' is missing"),
    (_drop("architecture"), "contract: field 'architecture' is missing"),
    (_drop("classes"), "contract: field 'classes' is missing"),
    (_drop("training_data"), "contract: field 'training_data' is missing"),
    (_set("colour", value=1), "contract: unknown field 'colour'"),
    (_set("model_name", value=3), "contract.model_name: want str, got 3"),
    (_set("ignore_index", value="255"), "contract.ignore_index: want int, got '255'"),
    (_set("classes", value="road"), "contract.classes: want a list"),
    (_set("classes", value={"0": "road"}), "contract.classes: want a list"),
    (_set("classes", 1, value="road"), r"classes\[1\]: want an object, got str"),
    (_drop("classes", 1, "name"), r"classes\[1\]: field 'name' is missing"),
    (_set("classes", 1, "rgb", value=[1, 2, 3]), r"classes\[1\]: unknown field 'rgb'"),
    (_set("classes", 1, "id", value="1"), r"classes\[1\]\.id: want int"),
    (_set("classes", 1, "color", value="#ff0000"), r"classes\[1\]\.color: want three integers"),
    (_set("classes", 1, "color", value=[1, 2.5, 3]), r"classes\[1\]\.color: want three integers"),
    (_set("classes", 1, "color", value=[1, 2]), r"classes\[1\]\.color"),
    (_set("training_data", value="CamVid"), "training_data: want an object, got str"),
    (_drop("training_data", "licence"), "training_data: field 'licence' is missing"),
    (_set("training_data", "source", value=None), "training_data.source: want str, got None"),
    (_set("input", value=None), "input: want an object, got NoneType"),
    (_set("input", "mean", value=0.5), "input: unknown field 'mean'"),
    (_set("input", "stride", value=None), "input.stride: want int, got None"),
    (_set("input", "max_side_px", value="1"), "input.max_side_px: want int \\| None, got '1'"),
    (_set("input", "layout", value="NCHW"), "fold the conversion into the graph"),
    (_set("outputs", value=[]), "outputs: want an object, got list"),
    (_set("outputs", "logits", value=False), "outputs.logits: want str \\| None, got False"),
    (_set("scores", value=[0.7]), "contract.scores: want an object of numbers"),
    (_set("scores", value={"mean_iu": "high"}), r"scores\['mean_iu'\] is 'high'"),
    (_set("precision", value="fp8"), "precision 'fp8'"),
]


@pytest.mark.parametrize(("change", "message"), BAD_JSON)
def test_wrong_json_is_refused(change: Callable[[dict[str, Any]], None], message: str) -> None:
    raw = contract().to_dict()
    change(raw)
    with pytest.raises(ContractError, match=message):
        Contract.from_json(json.dumps(raw))


def test_a_newer_format_is_named_before_its_new_fields() -> None:
    raw = contract().to_dict() | {"format_version": FORMAT_VERSION + 1, "a_new_field": 1}
    with pytest.raises(ContractError, match="format 4 is not understood.*export the model again"):
        Contract.from_json(json.dumps(raw))


def test_only_what_needs_it_is_of_a_newer_format() -> None:
    """A server of before reads every other file."""
    ranged = InputSpec(learned_side_px=480, range_from_px=240, range_to_px=960)
    scaled = contract(input=ranged, format_version=3)
    assert ranged.format_version == 3 and ranged.range_px == (240, 480, 960)
    assert Contract.from_json(scaled.to_json()) == scaled
    plain = json.loads(contract().to_json())
    assert plain["format_version"] == 1
    assert not {"sizes", "learned_side_px", "range_to_px"} & set(plain["input"])
    wanted = contract(input=InputSpec(sizes="sizes"), format_version=2)
    assert Contract.from_json(wanted.to_json()) == wanted
    assert json.loads(wanted.to_json())["input"]["sizes"] == "sizes"


def test_feeds_of_images_that_fill_the_batch_and_of_others() -> None:
    batch = np.zeros((2, 4, 5, 3), np.uint8)
    assert list(contract().feeds(batch)) == ["image"]
    ragged = contract(input=InputSpec(sizes="sizes"), format_version=2)
    assert ragged.feeds(batch)["sizes"].tolist() == [list(batch.shape[1:3])] * len(batch)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *((text, "the contract is not JSON") for text in ("", "{", "not json")),
        *((text, "contract: want an object") for text in ("[]", "3", '"text"', "null")),
    ],
)
def test_text_that_is_no_object(text: str, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        Contract.from_json(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@unhurried
@given(st.data())
def test_any_value_anywhere_is_taken_or_refused_cleanly(data: st.DataObject) -> None:
    """Whatever one field is replaced with: a contract or a ContractError, never a TypeError."""
    raw = contract(scores={"mean_iu": 0.5}).to_dict()
    target: Any = raw
    while True:
        key = data.draw(
            st.sampled_from(range(len(target)) if isinstance(target, list) else sorted(target))
        )
        if not isinstance(target[key], dict | list) or data.draw(st.booleans()):
            break
        target = target[key]
    target[key] = data.draw(json_values)
    try:
        read = Contract.from_json(json.dumps(raw))
    except ContractError as error:
        assert str(error)
    else:
        assert Contract.from_json(read.to_json()) == read


def test_metadata_of_a_file() -> None:
    wanted = contract()
    metadata = {METADATA_KEY: wanted.to_json(), "producer": "x"}
    assert Contract.from_metadata(metadata, "model.onnx") == wanted


def test_metadata_without_a_contract_says_what_to_do() -> None:
    with pytest.raises(ContractError, match="model.onnx has no contract.*'fcn_contract'.*fcn expo"):
        Contract.from_metadata({"producer": "x"}, "model.onnx")


def test_an_error_in_a_file_names_the_file() -> None:
    with pytest.raises(ContractError, match="^model.onnx: the contract is not JSON"):
        Contract.from_metadata({METADATA_KEY: "{"}, "model.onnx")


def test_palette() -> None:
    palette = contract().palette()
    assert palette.shape == (256, 3) and palette.dtype == np.uint8
    np.testing.assert_array_equal(palette[:3], [(70, 130, 180), (128, 64, 128), (1, 2, 3)])
    assert not palette[3:].any()


@pytest.mark.parametrize(("asked", "wanted"), [("sky", 0), ("road", 1), ("1", 1), ("7", 2)])
def test_class_id_by_name_or_number(asked: str, wanted: int) -> None:
    assert contract().class_id(asked) == wanted


@pytest.mark.parametrize("asked", ["Road", "3", "-1", "255", ""])
def test_no_such_class(asked: str) -> None:
    with pytest.raises(KeyError):
        contract().class_id(asked)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"stride": 1', '"stride": ' + "1" * 5000),
        ('"stride": 1', '"stride": ' + "1" * 12),
        ('"scores": {}', '"scores": {"mean_iu": ' + "9" * 400 + "}"),
        ('"description": ""', '"description": "\\ud800"'),
        ('"scores": {}', '"scores": ' + "[" * 5000),
    ],
)
def test_texts_that_parsers_choke_on_are_refused(old: str, new: str) -> None:
    text = tiny_models.contract("tiny").to_json()
    assert old in text
    with pytest.raises(ContractError):
        Contract.from_json(text.replace(old, new, 1))
