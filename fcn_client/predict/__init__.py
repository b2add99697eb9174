"""Makes label maps, overlays and class shares of a file, a folder or a video (`fcn predict`)."""

from fcn_client.predict.inputs import Item, find
from fcn_client.predict.job import Outcome, Summary, predict
from fcn_client.predict.labeller import Labeller, RemoteLabeller
from fcn_client.predict.outputs import Folder
from fcn_client.predict.writer import IMAGE_FOLDERS

__all__ = [
    "IMAGE_FOLDERS",
    "Folder",
    "Item",
    "Labeller",
    "Outcome",
    "RemoteLabeller",
    "Summary",
    "find",
    "predict",
]
