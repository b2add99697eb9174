"""Converts learning rates from one loss or batch size to another, under SGD with momentum.

The paper's released networks learn from a loss summed over the pixels of one image, at rates that
look absurd (1e-10). A sum over P pixels is P times their mean, so they are ordinary rates of the
mean, with one exception: nothing scales weight decay along with the loss.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SgdRates:
    """Holds the numbers of `torch.optim.SGD`.

    v = momentum * v + gradient + weight_decay * w; w -= lr * v.
    """

    lr: float
    momentum: float
    weight_decay: float

    def of_mean(self, pixels: int) -> SgdRates:
        """Convert from the loss summed over `pixels` labelled pixels to the mean over them.

        lr * (P * g + d * w) = (P * lr) * (g + d / P * w): the rate grows by P and the decay shrinks
        by it. At 1e-10 and 500x375 pixels the mean's rate is 1.9e-5, and a decay of 5e-4 is one of
        2.7e-9: those networks are, in effect, not decayed. Only images with as many labelled pixels
        are the same to the step; elsewhere the sum lets an image weigh as much as it has pixels.
        """
        return SgdRates(self.lr * pixels, self.momentum, self.weight_decay / pixels)

    @property
    def effective_lr(self) -> float:
        """Says how far a constant gradient moves a weight per iteration in the long run."""
        return self.lr / (1 - self.momentum)


def equivalent_momentum(momentum: float, images: int) -> float:
    """Find the momentum at one image a batch that forgets as fast as `momentum` at `images`.

    0.9 at 20 images is 0.9947 at one; the authors took 0.99. That the paper's journal version
    argues so is recalled, not checked; the arithmetic is ours.
    """
    return float(momentum ** (1 / images))
