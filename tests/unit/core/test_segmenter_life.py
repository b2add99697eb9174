"""The start, load and deadlines, and the end, most of it on a device that is held."""

from __future__ import annotations

import asyncio
import io
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from model.contract import METADATA_KEY, Contract, InputSpec
from service.core.images.header import read_header
from service.core.models import manager
from service.core.types import ModelState, Network, UInt8Array
from service.errors import (
    DeadlineExceeded,
    ImageTooLarge,
    InferenceFailed,
    ModelLoadError,
    ModelNotReady,
    Overloaded,
    ShuttingDown,
)
from tests import tiny_models
from tests.conftest import need
from tests.drawing import read_png
from tests.tiny_models import expected_label_map, write_model
from tests.unit.core.fakes import Function, Recorder, settle
from tests.unit.core.segmenters import (
    OPTIONS,
    PNG,
    RGB,
    on_device,
    red,
    segmenter_of,
    send,
    serving,
)

# The start


async def test_before_the_start_nothing_is_ready(tmp_path: Path) -> None:
    write_model(tmp_path)
    segmenter = segmenter_of(tmp_path)
    assert not segmenter.ready()
    assert segmenter.models() == []
    with pytest.raises(ModelNotReady, match="still loading"):
        await segmenter.segment(PNG, OPTIONS)
    await segmenter.start()
    assert segmenter.ready()
    await segmenter.aclose()
    assert not segmenter.ready()


async def test_sizes_to_warm_up_run_before_the_first_request(tmp_path: Path) -> None:
    contract = tiny_models.contract(input_spec=InputSpec(stride=1, max_side_px=300))
    warmed: list[tuple[int, ...]] = []

    def run(batch: UInt8Array) -> UInt8Array:
        warmed.append(batch.shape[1:3])
        return batch[..., 0]

    network = Network(Path("model.onnx"), contract, "cpu", [Function(run)])
    write_model(tmp_path)
    async with serving(
        tmp_path, open_network=lambda path: network, warm_up_sizes=((20, 30), (301, 20))
    ):
        assert {*warmed} == {(20, 30), (256, 256)}


async def test_the_cores_are_divided_as_asked(tmp_path: Path) -> None:
    write_model(tmp_path)
    async with serving(tmp_path, instances=3, alone_threads=2) as segmenter:
        (served,) = segmenter._registry.models()
        found = [instance.full_device for instance in served.network.instances]
        assert found == [False, False, False, True]
        assert (await segmenter.segment(PNG, OPTIONS)).height


async def test_openvino_behind_the_segmenter_answers_as_onnx_runtime_does(tmp_path: Path) -> None:
    need(find_spec("openvino") is not None, "the package openvino")
    write_model(tmp_path)
    async with serving(tmp_path, engine="openvino") as segmenter:
        reply = await segmenter.segment(PNG, OPTIONS)
    assert (read_png(reply.body) == expected_label_map(RGB)).all()


NO_CONTRACT = tiny_models.build()
SHRUNK = tiny_models.build(metadata={METADATA_KEY: tiny_models.contract().to_json()}, shrink=True)


@pytest.mark.parametrize(
    ("model", "says"), [(NO_CONTRACT, "has no contract"), (SHRUNK, "not \\[1, 256, 256\\]")]
)
async def test_a_bad_model_stops_the_start_and_leaves_nothing_running(
    tmp_path: Path, model: Any, says: str
) -> None:
    write_model(tmp_path, "a-good-one")
    tiny_models.write_file(model, tmp_path, "bad")
    segmenter = segmenter_of(tmp_path)
    before = asyncio.all_tasks()
    with pytest.raises(ModelLoadError, match=says) as caught:
        await segmenter.start()
    assert "\n" not in str(caught.value)
    assert not segmenter.ready()
    assert asyncio.all_tasks() == before


NO_SIZE = tiny_models.contract(input_spec=InputSpec(max_side_px=20, multiple_of_px=32))


@pytest.mark.parametrize(
    ("contract", "options", "says"),
    [
        (None, {"engine": "tvm"}, "engine 'tvm'"),
        (None, {"model_repository": Path("/none")}, "is not a folder"),
        (None, {"default_model": "other"}, "'other' is not in the repository, which has tiny"),
        (NO_SIZE, {}, "allows no size at all: no multiple of 32 px"),
    ],
)
async def test_what_stops_the_start(
    tmp_path: Path, contract: Contract | None, options: dict[str, Any], says: str
) -> None:
    write_model(tmp_path, model_contract=contract or tiny_models.contract())
    with pytest.raises(ModelLoadError, match=says):
        await segmenter_of(**{"model_repository": tmp_path, **options}).start()


# Load, time and leaving


async def test_permits_are_taken_before_the_decode(tmp_path: Path) -> None:
    recorder = Recorder()
    async with on_device(tmp_path, max_inflight=2, observer=recorder) as (segmenter, device):
        device.hold()
        first = send(segmenter)
        await device.entered()
        second = send(segmenter)
        await settle()
        with pytest.raises(Overloaded) as caught:
            # Not a whole image, but that nobody is to find out.
            await segmenter.segment(PNG[:50], OPTIONS)
        assert caught.value.retry_after_s >= 1
        assert recorder.reasons == ["overloaded"]
        device.release()
        await asyncio.gather(first, second)
        await segmenter.segment(PNG, OPTIONS)
    assert max(recorder.inflights) == 2
    assert recorder.inflights[-1] == 0


async def test_by_default_the_memory_decides_how_many_pixels_are_admitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.core.engines.memory.MIN_ADMITTED_BYTES", 1)
    for memory_bytes, room in ((460_000_000, False), (1 << 40, True)):
        monkeypatch.setattr(
            "service.core.engines.memory.available_memory_bytes", lambda m=memory_bytes: m
        )
        async with on_device(tmp_path) as (segmenter, device):
            device.hold()
            first = send(segmenter)  # one always fits
            await device.entered()
            second = send(segmenter)
            await settle()
            assert second.done() is not room
            device.release()
            await first
            if room:
                await second
            else:
                with pytest.raises(Overloaded):
                    await second


async def test_what_decoding_takes_is_held_until_it_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.core.batching.admission.WORTH_A_TURN_BYTES", 0)
    body = io.BytesIO()
    Image.fromarray(RGB).save(body, "TIFF", big_tiff=True)
    n_bytes, header = len(body.getvalue()), read_header(body.getvalue(), max_bytes=1 << 20)
    assert header.decode_bytes > 7 * header.pixels
    async with on_device(tmp_path) as (segmenter, device):
        device.hold()
        first = send(segmenter, body.getvalue())
        await asyncio.sleep(0)
        assert segmenter._admission.held == (1, n_bytes, header.decode_bytes)
        await device.entered()
        await settle()
        assert segmenter._admission.held == (1, n_bytes, 4 * 23 * 31)
        device.release()
        await first
        assert segmenter._admission.held == (0, 0, 0)


async def test_an_image_that_takes_more_than_there_is_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.core.engines.memory.RESERVED_ALONE_BYTES", 0)
    monkeypatch.setattr("service.core.engines.memory.MIN_ADMITTED_BYTES", 1)
    takes = read_header(PNG, max_bytes=1 << 20).decode_bytes
    for there, fits in ((takes, True), (takes - 1, False)):
        monkeypatch.setattr(
            "service.core.engines.memory.available_memory_bytes", lambda there=there: there
        )
        async with on_device(tmp_path) as (segmenter, _):
            if fits:
                await segmenter.segment(PNG, OPTIONS)
            else:
                with pytest.raises(ImageTooLarge, match="to decode this PNG file takes"):
                    await segmenter.segment(PNG, OPTIONS)


async def test_before_its_model_is_known_a_request_is_refused_only_where_one_serves(
    tmp_path: Path,
) -> None:
    recorder = Recorder()
    async with on_device(tmp_path, max_queue=1, max_batch=1, observer=recorder) as (
        segmenter,
        device,
    ):
        device.hold()
        first = send(segmenter)
        await device.entered()
        second = send(segmenter)
        segmenter.check_any(60.0)
        await recorder.until_depth(1)
        with pytest.raises(Overloaded):
            segmenter.check_any(60.0)
        assert recorder.reasons == ["queue_full"]
        write_model(tmp_path, "other")
        await segmenter.load("other")
        segmenter.check_any(60.0)
        device.release()
        await asyncio.gather(first, second)


async def test_a_deadline_ends_the_wait(tmp_path: Path) -> None:
    async with on_device(tmp_path) as (segmenter, device):
        device.hold()
        with pytest.raises(DeadlineExceeded):  # while the device is held
            await segmenter.segment(PNG, replace(OPTIONS, deadline_s=0.05))
        device.release()
        await segmenter.segment(PNG, replace(OPTIONS, deadline_s=60.0))


async def test_a_caller_that_leaves_is_dropped_from_the_queue(tmp_path: Path) -> None:
    recorder = Recorder()
    async with on_device(tmp_path, observer=recorder) as (segmenter, device):
        device.hold()
        first = send(segmenter, red(1))
        await device.entered()
        second, third = send(segmenter, red(2)), send(segmenter, red(0))
        await recorder.until_depth(2)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        device.release()
        await asyncio.gather(first, third)
    assert device.values == [[1], [0]]
    assert recorder.inflights[-1] == 0


async def test_stages_are_observed(tmp_path: Path) -> None:
    write_model(tmp_path)
    recorder = Recorder()
    async with serving(tmp_path, observer=recorder) as segmenter:
        await segmenter.segment(PNG, OPTIONS)
    assert recorder.stages == [("tiny", s) for s in ("decode", "queue", "infer", "render")]
    assert recorder.pixels == [23 * 31]
    assert recorder.batches == [1]
    assert recorder.inflights == [1, 0]


# The end


async def test_draining_finishes_what_is_in_flight_and_refuses_the_rest(tmp_path: Path) -> None:
    recorder = Recorder()
    async with on_device(tmp_path, observer=recorder) as (segmenter, device):
        device.hold()
        first = send(segmenter)
        await device.entered()
        draining = asyncio.get_running_loop().create_task(segmenter.drain(10))
        await settle()
        assert not segmenter.ready()
        with pytest.raises(ShuttingDown):
            await segmenter.segment(PNG, OPTIONS)
        assert not draining.done()
        device.release()
        assert (await first).height == 23
        assert await draining
        assert await segmenter.drain(0), "idle"
    assert recorder.reasons == ["shutting_down"]


async def test_draining_gives_up_in_time_and_closing_answers_the_rest(tmp_path: Path) -> None:
    async with on_device(tmp_path) as (segmenter, device):
        device.hold()
        first = send(segmenter)
        await device.entered()
        assert not await segmenter.drain(0.02)
        await segmenter.aclose()
        with pytest.raises(ShuttingDown):
            await first


async def test_a_model_whose_worker_died_is_not_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manager, "TICK_S", 600.0)  # else it is loaded anew

    class Dead(BaseException):
        """Not an Exception, so that it is no failure of one batch."""

    class Breaking(Recorder):
        def batch(self, model: str, size: int, closed: str) -> None:
            raise Dead

    async with on_device(tmp_path, observer=Breaking()) as (segmenter, _):
        assert segmenter.ready()
        with pytest.raises(InferenceFailed):
            await segmenter.segment(PNG, OPTIONS)
        assert not segmenter.ready()
        assert segmenter.models()[0].default.state is ModelState.FAILED
        with pytest.raises(ModelNotReady):
            await segmenter.segment(PNG, OPTIONS)
