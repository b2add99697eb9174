"""Training and evaluation of the networks in `model`."""
