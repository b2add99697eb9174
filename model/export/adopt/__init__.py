"""A contract for an ONNX segmentation network of any origin.

`network` reads the file, `probe` learns by running it what the file does not say, `output` reads
what it answers, and `meaning` says by word or proof what those numbers are. `preprocessing` is how
it wants its image, `wrap` puts around it what a server's contract asks for, `reference` computes
the same without ONNX, and `file` compares the two and writes.
"""

from model.export.adopt.file import AdoptReport, adopt
from model.export.adopt.network import AdoptError, open_network
from model.export.adopt.options import AdoptOptions
from model.export.adopt.preprocessing import PRESETS, chosen

__all__ = [
    "PRESETS",
    "AdoptError",
    "AdoptReport",
    "AdoptOptions",
    "chosen",
    "adopt",
    "open_network",
]
