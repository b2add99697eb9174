# By `make proto` with grpcio-tools==1.72.2 from segmentation.proto, sha256 f98a9859c74e9fe99ad6110ae861e266.
# mypy: disable-error-code="type-arg"
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Output(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTPUT_UNSPECIFIED: _ClassVar[Output]
    OUTPUT_LABEL_MAP: _ClassVar[Output]
    OUTPUT_OVERLAY: _ClassVar[Output]
    OUTPUT_COLOR: _ClassVar[Output]
    OUTPUT_JSON: _ClassVar[Output]
    OUTPUT_RLE: _ClassVar[Output]
    OUTPUT_POLYGONS: _ClassVar[Output]
    OUTPUT_PROBABILITIES: _ClassVar[Output]
    OUTPUT_CONFIDENCE: _ClassVar[Output]

class Dtype(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DTYPE_UNSPECIFIED: _ClassVar[Dtype]
    DTYPE_UINT8: _ClassVar[Dtype]
    DTYPE_FLOAT16: _ClassVar[Dtype]

class Priority(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRIORITY_UNSPECIFIED: _ClassVar[Priority]
    PRIORITY_HIGH: _ClassVar[Priority]
    PRIORITY_NORMAL: _ClassVar[Priority]
    PRIORITY_LOW: _ClassVar[Priority]
OUTPUT_UNSPECIFIED: Output
OUTPUT_LABEL_MAP: Output
OUTPUT_OVERLAY: Output
OUTPUT_COLOR: Output
OUTPUT_JSON: Output
OUTPUT_RLE: Output
OUTPUT_POLYGONS: Output
OUTPUT_PROBABILITIES: Output
OUTPUT_CONFIDENCE: Output
DTYPE_UNSPECIFIED: Dtype
DTYPE_UINT8: Dtype
DTYPE_FLOAT16: Dtype
PRIORITY_UNSPECIFIED: Priority
PRIORITY_HIGH: Priority
PRIORITY_NORMAL: Priority
PRIORITY_LOW: Priority

class SegmentRequest(_message.Message):
    __slots__ = ("image", "model", "version", "output", "alpha", "classes", "priority", "outlines", "dtype", "scale")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    OUTLINES_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    image: bytes
    model: str
    version: str
    output: Output
    alpha: float
    classes: _containers.RepeatedScalarFieldContainer[str]
    priority: Priority
    outlines: bool
    dtype: Dtype
    scale: str
    def __init__(self, image: _Optional[bytes] = ..., model: _Optional[str] = ..., version: _Optional[str] = ..., output: _Optional[_Union[Output, str]] = ..., alpha: _Optional[float] = ..., classes: _Optional[_Iterable[str]] = ..., priority: _Optional[_Union[Priority, str]] = ..., outlines: bool = ..., dtype: _Optional[_Union[Dtype, str]] = ..., scale: _Optional[str] = ...) -> None: ...

class SegmentResponse(_message.Message):
    __slots__ = ("body", "media_type", "height_px", "width_px", "model", "version", "timings", "batch_size", "network_height_px", "network_width_px")
    BODY_FIELD_NUMBER: _ClassVar[int]
    MEDIA_TYPE_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_PX_FIELD_NUMBER: _ClassVar[int]
    WIDTH_PX_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    NETWORK_HEIGHT_PX_FIELD_NUMBER: _ClassVar[int]
    NETWORK_WIDTH_PX_FIELD_NUMBER: _ClassVar[int]
    body: bytes
    media_type: str
    height_px: int
    width_px: int
    model: str
    version: str
    timings: Timings
    batch_size: int
    network_height_px: int
    network_width_px: int
    def __init__(self, body: _Optional[bytes] = ..., media_type: _Optional[str] = ..., height_px: _Optional[int] = ..., width_px: _Optional[int] = ..., model: _Optional[str] = ..., version: _Optional[str] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., batch_size: _Optional[int] = ..., network_height_px: _Optional[int] = ..., network_width_px: _Optional[int] = ...) -> None: ...

class SegmentStreamRequest(_message.Message):
    __slots__ = ("id", "request", "deadline_ms", "options")
    ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    id: str
    request: SegmentRequest
    deadline_ms: int
    options: StreamOptions
    def __init__(self, id: _Optional[str] = ..., request: _Optional[_Union[SegmentRequest, _Mapping]] = ..., deadline_ms: _Optional[int] = ..., options: _Optional[_Union[StreamOptions, _Mapping]] = ...) -> None: ...

class StreamOptions(_message.Message):
    __slots__ = ("ordered", "window")
    ORDERED_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    ordered: bool
    window: int
    def __init__(self, ordered: bool = ..., window: _Optional[int] = ...) -> None: ...

class SegmentStreamResponse(_message.Message):
    __slots__ = ("id", "response", "error")
    ID_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    id: str
    response: SegmentResponse
    error: ItemError
    def __init__(self, id: _Optional[str] = ..., response: _Optional[_Union[SegmentResponse, _Mapping]] = ..., error: _Optional[_Union[ItemError, _Mapping]] = ...) -> None: ...

class ItemError(_message.Message):
    __slots__ = ("code", "message", "type", "retry_after_ms")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    type: str
    retry_after_ms: int
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ..., type: _Optional[str] = ..., retry_after_ms: _Optional[int] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("decode_s", "queue_s", "infer_s", "render_s")
    DECODE_S_FIELD_NUMBER: _ClassVar[int]
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    INFER_S_FIELD_NUMBER: _ClassVar[int]
    RENDER_S_FIELD_NUMBER: _ClassVar[int]
    decode_s: float
    queue_s: float
    infer_s: float
    render_s: float
    def __init__(self, decode_s: _Optional[float] = ..., queue_s: _Optional[float] = ..., infer_s: _Optional[float] = ..., render_s: _Optional[float] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "version", "state", "is_default", "architecture", "precision", "provider", "classes", "contract_json", "engine", "description")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    IS_DEFAULT_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    CONTRACT_JSON_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    state: str
    is_default: bool
    architecture: str
    precision: str
    provider: str
    classes: _containers.RepeatedCompositeFieldContainer[ClassInfo]
    contract_json: str
    engine: str
    description: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., state: _Optional[str] = ..., is_default: bool = ..., architecture: _Optional[str] = ..., precision: _Optional[str] = ..., provider: _Optional[str] = ..., classes: _Optional[_Iterable[_Union[ClassInfo, _Mapping]]] = ..., contract_json: _Optional[str] = ..., engine: _Optional[str] = ..., description: _Optional[str] = ...) -> None: ...

class ClassInfo(_message.Message):
    __slots__ = ("id", "name", "color_rgb", "description")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    COLOR_RGB_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    id: int
    name: str
    color_rgb: _containers.RepeatedScalarFieldContainer[int]
    description: str
    def __init__(self, id: _Optional[int] = ..., name: _Optional[str] = ..., color_rgb: _Optional[_Iterable[int]] = ..., description: _Optional[str] = ...) -> None: ...
