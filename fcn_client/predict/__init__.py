"""Label maps, overlays and class shares of a file, a folder or a video: what `fcn predict` does."""

from fcn_client.predict.inputs import Item, find
from fcn_client.predict.job import Summary, predict
from fcn_client.predict.labeller import Labeller, RemoteLabeller
from fcn_client.predict.outputs import PICTURES, Folder

__all__ = [
    "PICTURES",
    "Folder",
    "Item",
    "Labeller",
    "RemoteLabeller",
    "Summary",
    "find",
    "predict",
]
