"""Query parameters and Accept, to options."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.http.parameters import output_accepted, segment_options
from service.core.types import Dtype, Priority, SegmentOptions
from service.errors import InvalidParameter, NotAcceptable


def test_defaults() -> None:
    assert segment_options([], None, 30.0) == SegmentOptions(deadline_s=30.0)


def test_everything() -> None:
    query = [
        ("model", "m"),
        ("version", "3"),
        ("output", "overlay"),
        ("alpha", "0.25"),
        ("outlines", "true"),
        ("dtype", "float16"),
        ("classes", "road, sky"),
        ("classes", "4,"),
        ("deadline_ms", "250"),
        ("scale", "960"),
    ]
    assert segment_options(query, "image/png", 30.0) == SegmentOptions(
        model="m",
        version="3",
        output="overlay",
        alpha=0.25,
        outlines=True,
        dtype=Dtype.FLOAT16,
        classes=("road", "sky", "4"),
        deadline_s=0.25,
        scale=960,
    )


def test_empty_names_mean_the_default() -> None:
    made = segment_options([("model", ""), ("version", "")], None, 1.0)
    assert (made.model, made.version) == (None, None)


@given(
    st.lists(st.tuples(st.sampled_from(("output", "alpha", "deadline_ms", "x")), st.text())),
    st.none() | st.text(),
)
def test_nothing_but_our_errors(query: list[tuple[str, str]], accept: str | None) -> None:
    try:
        made = segment_options(query, accept, 1.0)
    except InvalidParameter as error:
        assert len(str(error)) < 400
    else:
        assert made.deadline_s is not None and 0 < made.deadline_s <= 3600


@pytest.mark.parametrize(
    ("name", "text", "choices"),
    [
        ("outlines", "yes", "true or false"),
        ("outlines", "", "true or false"),
        ("dtype", "float32", "uint8, float16"),
        ("output", "mask", "polygons, probabilities or rle"),
    ],
)
def test_a_wrong_choice_is_told_the_right_ones(name: str, text: str, choices: str) -> None:
    with pytest.raises(InvalidParameter, match=f"{text}.*{choices}"):
        segment_options([(name, text)], None, 1.0)


@pytest.mark.parametrize("text", ["", "0", "-1", "1e3", "3600001", "000000001999999999", "\u00b2"])
def test_deadlines_out_of_range(text: str) -> None:
    with pytest.raises(InvalidParameter, match="1 to 3600000"):
        segment_options([("deadline_ms", text)], None, 1.0)


@pytest.mark.parametrize(
    ("accept", "output"),
    [
        ("image/png;q=0.1, application/json;q=0.2", "json"),
        ("application/json;q=bad, */*", "label_map"),
        ("APPLICATION/JSON", "json"),
        ("application/geo+json", "polygons"),
        ("application/x-npy, application/json;q=0.5", "probabilities"),
        ("application/*", "json"),
        ("image/*", "label_map"),
        ("text/html, application/json;q=0.9, */*;q=0.1", "json"),
        ("image/png;q=0, */*", "json"),
    ],
)
def test_accept(accept: str, output: str) -> None:
    assert output_accepted(accept) == output


@pytest.mark.parametrize("accept", ["text/html", "*/*;q=0", "image/jpeg", "png"])
def test_not_acceptable(accept: str) -> None:
    with pytest.raises(NotAcceptable, match="image/png, application/json,"):
        output_accepted(accept)


def test_priorities() -> None:
    def priority(*query: tuple[str, str]) -> Priority:
        return segment_options(query, None, 30.0).priority

    assert priority() is Priority.NORMAL
    assert [priority(("priority", name)) for name in ("high", "normal", "low")] == list(Priority)
    with pytest.raises(InvalidParameter, match="priority='urgent': use one of high, normal, low"):
        priority(("priority", "urgent"))
