# By `make proto` with grpcio-tools==1.72.2 from segmentation.proto, sha256 42f3ce4744d805aa24d40de6f59298fe.
from typing import Any

class SegmentationStub:
    def __init__(self, channel: Any) -> None: ...
    Segment: Any
    SegmentStream: Any
    ListModels: Any

def add_SegmentationServicer_to_server(servicer: Any, server: Any) -> None: ...
