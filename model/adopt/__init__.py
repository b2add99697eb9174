"""A contract for an ONNX segmentation network of any origin.

`network` reads the file, `trial` learns by running it what the file does not say, `pixels` is how
it wants its picture, `graph` puts around it what a server's contract asks for, `reference` computes
the same in numpy, and `file` compares the two and writes.
"""

from model.adopt.file import AdoptReport, adopt
from model.adopt.network import AdoptError, open_network
from model.adopt.pixels import PRESETS, Pixels
from model.adopt.trial import Choices

__all__ = ["PRESETS", "AdoptError", "AdoptReport", "Choices", "Pixels", "adopt", "open_network"]
