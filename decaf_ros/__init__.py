"""decaf_ros: training-free video reasoning segmentation for robots.

The core (everything outside `decaf_ros.nodes`) knows no ROS type. Start reading at `decaf_ros.pipeline`.
"""

from pkgutil import extend_path

# In a source checkout the generated `decaf_ros.msg` and `decaf_ros.action` lie in another folder of the Python path.
__path__ = extend_path(__path__, __name__)

__version__ = "0.1.0"
