from __future__ import annotations

from bench.copies import measure


def test_a_picture_is_copied_where_it_must_be_and_nowhere_else() -> None:
    rows = measure(120, 160)
    for stage in ("prepare", "batch, run", "restore"):
        assert rows[stage]["shares_memory"], stage
        assert rows[stage]["left_bytes_per_pixel"] < 1, stage
    # The decoder writes where the network reads: nothing but those three bytes a pixel.
    assert rows["decode"]["pillow_images"] == 0
    assert 3 <= rows["decode"]["left_bytes_per_pixel"] < 3.5
    assert rows["decode"]["most_bytes_per_pixel"] < 3.5
    assert rows["squeeze probabilities, uint8"]["left_bytes_per_pixel"] < 12, "one, of 11 classes"
    assert rows["render probabilities, uint8"]["most_bytes_per_pixel"] < 12, "the reply's bytes"
