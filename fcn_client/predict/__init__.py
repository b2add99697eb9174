"""Makes label maps, overlays and class shares of a file, a folder or a video (`fcn predict`)."""

from fcn_client.predict.inputs import Item, find
from fcn_client.predict.job import Summary, predict
from fcn_client.predict.labeller import Labeller, RemoteLabeller
from fcn_client.predict.outputs import IMAGE_FOLDERS, Folder

__all__ = [
    "IMAGE_FOLDERS",
    "Folder",
    "Item",
    "Labeller",
    "RemoteLabeller",
    "Summary",
    "find",
    "predict",
]
