"""Writes what another network says of a data set's images, for `distill.maps` of a recipe.

    python -m tools.make_teacher_maps NETWORK.onnx DATASET ROOT --out FOLDER

NETWORK takes one RGB image, uint8 [1,S,S,3], and computes scores, float [1,K,h,w], whose corners
lie on the image's: DeepLabv3 as TensorFlow Lite has it. Which of its K channels are the data set's
classes is said by --channels, in their order; --scores names the scores where they are no output.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import torch
from PIL import Image
from torch.nn import functional
from tqdm import tqdm

from training.datasets import open_dataset
from training.datasets.taught import map_path
from training.evaluation.metrics import Confusion

_GREY = 127
_STRIDE = 4
"""Pixels of the network's input to one of the map's."""

FloatArray = npt.NDArray[np.float32]


class Teacher:
    """Runs a network of one input size over images of any."""

    def __init__(self, path: Path, scores: str, channels: list[int], threads: int) -> None:
        network = onnx.load(path)
        output = onnx.helper.make_tensor_value_info(scores, onnx.TensorProto.FLOAT, None)
        del network.graph.output[:]
        network.graph.output.append(output)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = ort.InferenceSession(network.SerializeToString(), options)
        given = self._session.get_inputs()[0]
        self._name, self._side = given.name, int(given.shape[1])
        self._channels = channels

    def probabilities(self, image: npt.NDArray[np.uint8]) -> FloatArray:
        """Compute float32 [C,h,w] over uint8 RGB [H,W,3], the mean of the image's and that of its
        mirror image. What other classes of the network have is missing from the sum over C."""
        height, width = image.shape[:2]
        factor = self._side / max(height, width)
        size = max(1, round(height * factor)), max(1, round(width * factor))
        scaled = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
        both = self._run(scaled), self._run(scaled[:, ::-1])[..., ::-1]
        mean = torch.from_numpy(((both[0] + both[1]) / 2).copy())[None]
        small = max(1, size[0] // _STRIDE), max(1, size[1] // _STRIDE)
        averaged: FloatArray = functional.interpolate(mean, small, mode="area")[0].numpy()
        return averaged

    def _run(self, image: npt.NDArray[np.uint8]) -> FloatArray:
        height, width = image.shape[:2]
        canvas = np.full((1, self._side, self._side, 3), _GREY, np.uint8)
        canvas[0, :height, :width] = image
        scores = torch.from_numpy(self._session.run(None, {self._name: canvas})[0])
        whole = functional.interpolate(
            scores, (self._side, self._side), mode="bilinear", align_corners=True
        )
        seen = whole[0, :, :height, :width].softmax(dim=0)[self._channels]
        result: FloatArray = seen.numpy()
        return result


def main() -> None:
    """Write one map an image, and say what mean IU they have where the data set has labels."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", type=Path)
    parser.add_argument("dataset")
    parser.add_argument("root", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--split", default="train")
    parser.add_argument("--scores", required=True, help="tensor of the scores")
    parser.add_argument("--channels", required=True, help="as 0,8,10")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    channels = [int(text) for text in args.channels.split(",")]
    teacher = Teacher(args.network, args.scores, channels, args.threads)
    data = open_dataset(args.dataset, args.root, args.split)
    args.out.mkdir(parents=True, exist_ok=True)
    confusion = Confusion(data.num_classes)
    for index in tqdm(range(len(data)), args.split, unit="image"):
        image, target = data[index]
        probabilities = teacher.probabilities(image)
        np.save(
            map_path(args.out, data.pairs[index][0]), np.rint(255 * probabilities).astype(np.uint8)
        )
        whole = functional.interpolate(
            torch.from_numpy(probabilities)[None], target.shape, mode="bilinear"
        )
        confusion.add(target, whole.argmax(dim=1)[0].numpy().astype(np.uint8))
    tqdm.write(f"mean IU of the maps on {args.split}: {100 * confusion.scores().mean_iu:.2f}")


if __name__ == "__main__":
    main()
