"""A request of several images is answered for all of them, within limits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from service.api.oip import infer as module
from service.api.oip.infer import segment_all
from service.api.uploads import Uploads
from service.config import SegmenterConfig
from service.core.segmenter import Segmenter
from service.core.types import Score, SegmentOptions, SegmentReply
from service.errors import DeadlineExceeded, ImageTooLarge, Overloaded
from tests.drawing import street
from tests.tiny_models import expected_logits, write_model

IMAGES = [street(10, 20, seed=n) for n in range(3)]
BYTES = 3 * 3 * 10 * 20 * 4
"""Bytes of the logits of all of them."""


@pytest.mark.parametrize("as_numbers", [False, True])
async def test_scores_of_all_images_together_are_limited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_numbers: bool
) -> None:
    """They count as bytes, or as numbers, which take several times the room."""
    write_model(tmp_path, logits=True)
    limit = "MAX_SCORES_AS_NUMBERS_BYTES" if as_numbers else "MAX_SCORES_BYTES"
    other = "MAX_SCORES_BYTES" if as_numbers else "MAX_SCORES_AS_NUMBERS_BYTES"
    monkeypatch.setattr(module, other, 1)
    segmenter = Segmenter(
        SegmenterConfig(model_repository=tmp_path, provider="cpu", intra_op_threads=1)
    )
    await segmenter.start()
    options = SegmentOptions(output=None, scores=(Score.LOGITS,), deadline_s=30)

    uploads = Uploads(max_count=9, max_bytes=BYTES, timeout_s=9, rejected=lambda reason: None)

    async def ask() -> list[SegmentReply]:
        with uploads.begin() as held:
            return await segment_all(
                segmenter,
                IMAGES,
                options,
                ["logits"],
                max_pixels=10_000,
                as_numbers=as_numbers,
                held=held,
            )

    try:
        monkeypatch.setattr(module, limit, BYTES)
        found = np.stack([reply.scores[0] for reply in await ask()])
        np.testing.assert_array_equal(found, expected_logits(np.stack(IMAGES)))
        with uploads.begin(), pytest.raises(Overloaded):  # beside what others have, it is too much
            await ask()
        monkeypatch.setattr(module, limit, BYTES - 1)
        with pytest.raises(ImageTooLarge, match=f"up to {(BYTES - 1) // 3}: .*fewer images"):
            await ask()
    finally:
        await segmenter.aclose()


async def test_a_deadline_between_two_images_ends_the_request(tmp_path: Path) -> None:
    write_model(tmp_path)
    segmenter = Segmenter(
        SegmenterConfig(model_repository=tmp_path, provider="cpu", intra_op_threads=1)
    )
    await segmenter.start()
    options = SegmentOptions(deadline_s=-1.0)
    try:
        with pytest.raises(DeadlineExceeded, match="before all images were answered"):
            await segment_all(
                segmenter,
                IMAGES[:1],
                options,
                ["label_map"],
                max_pixels=10_000,
                as_numbers=False,
            )
    finally:
        await segmenter.aclose()
