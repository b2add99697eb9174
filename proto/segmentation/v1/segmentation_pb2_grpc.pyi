from typing import Any

class SegmentationStub:
    def __init__(self, channel: Any) -> None: ...
    Segment: Any
    SegmentStream: Any
    ListModels: Any

def add_SegmentationServicer_to_server(servicer: Any, server: Any) -> None: ...
