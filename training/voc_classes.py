"""The 21 classes of PASCAL VOC with its colours, for networks that come with no data set."""

from __future__ import annotations

from model.contract import ClassInfo, TrainingData
from training.datasets import DatasetInfo

_NAMES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)


def voc_color(class_id: int) -> tuple[int, int, int]:
    """RGB of a class: bits 0, 1 and 2 of the id are the highest bits of red, green and blue, bits
    3, 4 and 5 the next, 6 and 7 those after. Source: `VOClabelcolormap.m` of the VOC devkit.
    """
    channels = [0, 0, 0]
    for place in range(8):
        channels[place % 3] |= (class_id >> place & 1) << (7 - place // 3)
    red, green, blue = channels
    return red, green, blue


VOC = DatasetInfo(
    tuple(ClassInfo(index, name, voc_color(index)) for index, name in enumerate(_NAMES)),
    TrainingData(
        "PASCAL VOC 2011 with SBD",
        "images under Flickr's terms, see the data sets' own pages",
        "http://host.robots.ox.ac.uk/pascal/VOC/",
    ),
)
