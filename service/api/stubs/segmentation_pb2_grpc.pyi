# By `make proto` with grpcio-tools==1.72.2 from segmentation.proto, sha256 cfdeb2741c643e6320f5c7820e4afea7.
from typing import Any

class SegmentationStub:
    def __init__(self, channel: Any) -> None: ...
    Segment: Any
    SegmentStream: Any
    ListModels: Any

def add_SegmentationServicer_to_server(servicer: Any, server: Any) -> None: ...
