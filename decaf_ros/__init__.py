"""decaf_ros: training-free video reasoning segmentation for robots.

The names below are loaded on first use, so `import decaf_ros` is cheap. The core (everything outside
`decaf_ros.nodes`) imports no ROS. Start reading at `decaf_ros.pipeline`.
"""

from importlib import import_module
from pkgutil import extend_path
from typing import TYPE_CHECKING, Any

from decaf_ros.version import __version__

if TYPE_CHECKING:
    from decaf_ros.config import DecafConfig
    from decaf_ros.io.bags import BagReader
    from decaf_ros.io.parameter_files import load_config
    from decaf_ros.io.video import read_video
    from decaf_ros.offline import key_frames, segment_clip
    from decaf_ros.online.segmenter import OnlineSegmenter
    from decaf_ros.pipeline import Decaf
    from decaf_ros.types import Frame, FrameResult, Query, QueryEvent, Segmentation, Target, Window

# In a source checkout the generated `decaf_ros.msg`, `.srv` and `.action` are in another folder of the Python path.
__path__ = extend_path(__path__, __name__)

_MODULES = {
    "BagReader": "io.bags",
    "Decaf": "pipeline",
    "DecafConfig": "config",
    "Frame": "types",
    "FrameResult": "types",
    "OnlineSegmenter": "online.segmenter",
    "Query": "types",
    "QueryEvent": "types",
    "Segmentation": "types",
    "Target": "types",
    "Window": "types",
    "key_frames": "offline",
    "load_config": "io.parameter_files",
    "read_video": "io.video",
    "segment_clip": "offline",
}
__all__ = [
    "BagReader",
    "Decaf",
    "DecafConfig",
    "Frame",
    "FrameResult",
    "OnlineSegmenter",
    "Query",
    "QueryEvent",
    "Segmentation",
    "Target",
    "Window",
    "__version__",
    "key_frames",
    "load_config",
    "read_video",
    "segment_clip",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
