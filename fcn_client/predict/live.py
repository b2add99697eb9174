"""Takes frames from a camera while it goes on: an RTSP or HTTP stream, or a webcam of Linux.

Needs PyAV (the `video` extra). A camera waits for nobody: of the frames that come while the network
is busy the newest is kept, and those before it are dropped. A stream that has an end, as a film
behind an address has, is read whole.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlsplit

from fcn_client.errors import InvalidInput
from fcn_client.images import encode
from fcn_client.predict.frames import turned
from fcn_client.predict.inputs import Item, failing

_STREAM: Final = re.compile(r"(https?|rtmps?|rtsps?|srt|udp)://.+")
_WEBCAM: Final = re.compile(r"/dev/video\d+")
_SILENCE_S: Final = 15.0
"""A stream that sends nothing for so long has broken off."""


def is_live(source: str) -> bool:
    """Tells an address, or a webcam's device, from a path."""
    return bool(_STREAM.fullmatch(source) or _WEBCAM.fullmatch(source))


class Live:
    """Reads one stream or webcam; has what `Found` has, and `dropped`, the frames left out."""

    ignored = 0

    def __init__(self, source: str) -> None:
        """source: as `is_live` has it. Raises: InvalidInput."""
        try:
            parts = urlsplit(source)
        except ValueError as error:
            raise InvalidInput(f"{source} is no address: {error}") from error
        self._source = source
        # A camera's password stays out of tables, journals and messages.
        host = parts.netloc.rpartition("@")[2]
        self._shown = parts._replace(netloc=host, query="").geturl() if parts.scheme else source
        self._name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{host}{parts.path}").strip("-.") or "camera"
        self._newest = _Newest()

    @property
    def dropped(self) -> int:
        return self._newest.dropped

    def count(self) -> int | None:
        return None

    def items(self, every: int = 1) -> Iterator[Item]:
        """Yields frames until the stream ends; where it breaks off, at last an item that fails.

        every: of the stream's frames, take each n-th. Raises: InvalidInput where there is none.
        """
        began = datetime.now(UTC)
        # Each run has names of its own, for what a camera showed is not shown again.
        source = f"{self._shown} at {began:%Y-%m-%dT%H:%M:%SZ}"
        name = f"{self._name}/{began:%Y%m%dT%H%M%S.%f}Z"
        stamp = (0, time.time_ns())
        newest = self._newest
        threading.Thread(target=self._read, args=(every,), name="camera", daemon=True).start()
        number = None
        try:
            while (taken := newest.take()) is not None:
                number, frame = taken
                load = _Load(frame)
                yield Item(source, number, f"{name}/{number:06d}", stamp, load)
        except InvalidInput as error:
            if number is None:
                raise
            yield failing(source, str(error))
        finally:
            newest.stop()

    def _read(self, every: int) -> None:
        """Runs on a thread of its own, for a stream must be read whether or not anybody waits."""
        error: InvalidInput | None = None
        try:
            import av

            webcam = _WEBCAM.fullmatch(self._source) is not None
            options = {"rtsp_transport": "tcp"} if self._source.startswith("rtsp") else {}
            with av.open(
                self._source,
                format="v4l2" if webcam else None,
                options=options,
                timeout=_SILENCE_S,
            ) as container:
                if not container.streams.video:
                    raise InvalidInput(f"{self._shown} has no images in it")
                waits = container.duration is not None
                for number, frame in enumerate(container.decode(video=0)):
                    if number % every == 0 and not self._newest.put(number, frame, waits):
                        return
        except ModuleNotFoundError:
            error = InvalidInput(f"{self._shown} is a video, which needs PyAV: pip install av")
        except InvalidInput as found:
            error = found
        except Exception as found:  # FFmpeg's, and what PyAV makes of streams that are no images
            why = str(found).replace(self._source, self._shown)
            error = InvalidInput(f"{self._shown} cannot be read as a video: {why}")
        finally:
            self._newest.end(error)


@dataclass(frozen=True, slots=True)
class _Load:
    """Makes a file of a frame on the thread that sends it, and none of those that are dropped."""

    frame: Any = field(repr=False)

    def __call__(self) -> bytes:
        return encode(turned(self.frame))


class _Newest:
    """Hands the newest frame from the thread that reads to the one that takes."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._frame: tuple[int, Any] | None = None
        self._error: InvalidInput | None = None
        self._ended = self._stopped = False
        self.dropped = 0

    def put(self, number: int, frame: Any, waits: bool) -> bool:
        """Takes the place of a frame that nobody took, or waits until it is taken. Returns False
        when no more are wanted."""
        with self._changed:
            if waits:
                self._changed.wait_for(lambda: self._frame is None or self._stopped)
            if self._stopped:
                return False
            self.dropped += self._frame is not None
            self._frame = (number, frame)
            self._changed.notify_all()
            return True

    def take(self) -> tuple[int, Any] | None:
        """Waits for the next one; None at the end. Raises: InvalidInput where it broke off."""
        with self._changed:
            self._changed.wait_for(lambda: self._frame is not None or self._ended)
            taken, self._frame = self._frame, None
            self._changed.notify_all()
        if taken is None and self._error is not None:
            raise self._error
        return taken

    def end(self, error: InvalidInput | None) -> None:
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
