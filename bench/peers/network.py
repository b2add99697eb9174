"""Turns a JPEG into a palette PNG: every peer around it, and the bare limit without a server.

It runs in the peers' own environments: numpy, Pillow and onnxruntime, nothing of this project.
The session is set as in service/core. Decoder and encoder are Pillow, at its fastest level: the
best that these servers' users have at hand. The service reads plain JPEGs with libjpeg-turbo alone,
to the same pixels, and packs its PNGs with a writer of its own.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnxruntime
from PIL import Image

UInt8Array = npt.NDArray[np.uint8]

CONTRACT_KEY = "fcn_contract"
PNG_LEVEL = 1


def setting(name: str, default: int = 0) -> int:
    """Reads BENCH_WORKERS, BENCH_THREADS (of one inference), BENCH_BATCH (1: none), BENCH_PORT or
    BENCH_BOUND: requests inside at once before the server refuses, 0 for no bound."""
    return int(os.environ.get(f"BENCH_{name}", default))


class Network:
    """Holds one session over the file BENCH_MODEL, with as many threads as BENCH_THREADS."""

    def __init__(self, path: str | None = None, threads: int | None = None) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or setting("THREADS", 1)
        options.inter_op_num_threads = 1
        # Spinning takes the cores that decoding and encoding need.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            path or os.environ["BENCH_MODEL"], options, providers=["CPUExecutionProvider"]
        )
        self._input = self._session.get_inputs()[0].name
        self._palette = palette(self._session.get_modelmeta().custom_metadata_map[CONTRACT_KEY])

    def run(self, batch: UInt8Array) -> UInt8Array:
        """Gives the labels, uint8 [N,H,W], of uint8 RGB [N,H,W,3]."""
        (label_maps,) = self._session.run(["label_map"], {self._input: batch})
        return np.asarray(label_maps, np.uint8)

    def encode(self, label_map: UInt8Array) -> bytes:
        """Packs uint8 [H,W] into a palette PNG."""
        return encode(label_map, self._palette)

    def segment(self, body: bytes) -> bytes:
        """Makes a palette PNG of the JPEG's size."""
        return self.encode(self.run(decode(body)[None])[0])

    def segment_batch(self, bodies: Sequence[bytes]) -> list[bytes]:
        """Makes PNGs of JPEGs of one size, with one run of the network."""
        return [self.encode(found) for found in self.run(np.stack([decode(b) for b in bodies]))]


def decode(body: bytes) -> UInt8Array:
    """Decodes a JPEG to uint8 RGB [H,W,3]."""
    with Image.open(io.BytesIO(body), formats=("JPEG",)) as image:
        return np.array(image.convert("RGB"))


def encode(label_map: UInt8Array, palette: bytes) -> bytes:
    """Packs uint8 [H,W] into a palette PNG."""
    image = Image.fromarray(label_map)
    image.putpalette(palette)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=PNG_LEVEL)
    return buffer.getvalue()


def palette(contract: str) -> bytes:
    """Reads the colours of 256 classes from the contract inside the model file, which is JSON."""
    table = bytearray(768)
    for info in json.loads(contract)["classes"]:
        table[3 * info["id"] : 3 * info["id"] + 3] = bytes(info["color"])
    return bytes(table)
