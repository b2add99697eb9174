"""Names the channels a network is given of a scene: colour, depth, or an encoding of depth."""

from __future__ import annotations

from typing import Literal

Modality = Literal["rgb", "rgbd", "hha", "rgb-hha"]
"""The channels of an image, in this order, last axis in arrays and second in tensors.

`rgb`: R, G, B, uint8. `rgbd`: R, G, B in 0..255 and the natural logarithm of the depth in
millimetres, float32. `hha`: horizontal disparity, height above ground and angle with gravity as the
R, G, B of the PNG they are stored in, uint8. `rgb-hha`: R, G, B, then those three, uint8.
Source: `nyud_layers.py` of shelhamer/fcn.berkeleyvision.org; Gupta et al. 2014, arXiv 1407.5736.
"""

RGB: Modality = "rgb"

CHANNEL_COUNTS: dict[Modality, int] = {"rgb": 3, "rgbd": 4, "hha": 3, "rgb-hha": 6}

LOG_DEPTH_MEAN = 7.844
"""Mean of ln(mm) over NYUDv2: 2.55 m.

Source: `nyud_layers.py` of shelhamer/fcn.berkeleyvision.org."""

HHA_MEAN = (132.431, 94.076, 118.477)
"""Mean of each channel in their order, which are not flipped to BGR. Source: as above."""
