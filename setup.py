"""`pip install .`: the ROS-free core, the simulated table and the `decaf` command. CMakeLists.txt builds the rest."""

import re
from glob import glob
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
# The simulated table's command and data set; CMakeLists.txt installs the same file.
PLUGINS = (ROOT / "decaf_tabletop" / "entry_points.txt").read_text()
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "decaf_ros" / "version.py").read_text(), re.MULTILINE)[1]

setup(
    name="decaf_ros",
    version=VERSION,
    description="Training-free video reasoning segmentation for robots",
    license="Apache-2.0",
    # Not 3.14, Lyrical's: no test has run there yet.
    classifiers=[f"Programming Language :: Python :: 3.{minor}" for minor in (10, 11, 12, 13)],
    python_requires=">=3.10",
    packages=find_packages(include=["decaf_ros", "decaf_ros.*", "decaf_tabletop", "decaf_tabletop.*"]),
    package_data={
        "decaf_ros": ["py.typed", "evaluation/tables/*.yaml"],
        "decaf_tabletop": ["config/*.yaml", "models/*/*", "demo/bags/*/*", "README.md", "entry_points.txt"],
    },
    # The same places as in a ROS installation (decaf_ros/resources.py).
    data_files=[
        ("share/decaf_ros/config", glob("config/*")),
        ("share/decaf_ros/rviz", glob("rviz/*.rviz")),
        ("share/decaf_ros/foxglove", glob("foxglove/*.json")),
        ("share/decaf_ros/msg", glob("msg/*.msg")),
        ("share/decaf_ros/srv", glob("srv/*.srv")),
        ("share/decaf_ros/action", glob("action/*.action")),
        # `decaf doctor` reads the tested versions.
        ("share/decaf_ros/requirements", ["requirements/workspace.txt", "requirements/sam2.txt"]),
    ],
    entry_points=f"[console_scripts]\ndecaf = decaf_ros.cli.main:main\n\n{PLUGINS}",
    # The floors are the oldest versions that the tests have been run with (Python 3.10 on: transformers 4), the bounds
    # the next release that may break something after the newest of them (requirements/packages.txt).
    install_requires=[
        "torch>=2.5.1,<3",
        "torchvision>=0.20.1,<1",
        "transformers>=4.57,<6",  # older ones do not ask a registered attention function for its mask
        "numpy>=1.26,<3",
        "scipy>=1.11,<2",
        "opencv-python-headless>=4.10,<6",
        "av>=14,<19",  # encodes films for browsers
        "pillow>=10,<14",
        "PyYAML>=6.0.1,<7",
        "safetensors>=0.4.3,<1",
        "hydra-core>=1.3.2,<2",  # reads sam2's configuration files
        "rosbags>=0.11,<0.12",
        "rosbags-image>=0.10.2,<0.11",
        "mcap>=1.2.1,<2",  # older ones have no limit of a damaged record's size
        "backports-zstd>=1.0,<2; python_version < '3.14'",
    ],
    extras_require={
        # Apart, because it comes as source: SAM2_BUILD_CUDA=0 pip install --no-build-isolation 'decaf_ros[sam2]'
        "sam2": ["sam2>=1.1,<2"],
        # `mllm.quantization`: one package for each kind. Tested with the oldest and 0.50, 0.18, 1.15.
        "bitsandbytes": ["bitsandbytes>=0.47,<1", "accelerate>=1.1,<2"],
        "torchao": ["torchao>=0.15,<1", "accelerate>=1.1,<2", "torch>=2.6,<3"],  # does not run with torch 2.5
        # `decaf simulate` and `decaf eval` render with EGL (Debian: libegl1) or OSMesa (libosmesa6).
        "tabletop": [
            "mujoco>=3.3,<5",
        ],
        # `decaf reproduce --engine ray`.
        "ray": ["ray>=2.60,<3"],
        "test": ["pytest>=7.4,<10", "hypothesis>=6.100,<7"],
    },
)
