"""`pip install -e .`: the ROS-free core and the `decaf` command. The ROS package is built by CMakeLists.txt."""

import re
from glob import glob
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "decaf_ros" / "__init__.py").read_text(), re.MULTILINE)[1]

setup(
    name="decaf_ros",
    version=VERSION,
    description="Training-free video reasoning segmentation for robots",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["decaf_ros", "decaf_ros.*"]),
    # Where a ROS installation has them too; decaf_ros.io.interfaces looks there.
    data_files=[
        ("share/decaf_ros/msg", glob("msg/*.msg")),
        ("share/decaf_ros/action", glob("action/*.action")),
    ],
    entry_points={"console_scripts": ["decaf = decaf_ros.cli.main:main"]},
    # The floors are the oldest versions that the tests have been run with (Python 3.10 on: transformers 4).
    install_requires=[
        "torch>=2.5.1",
        "torchvision>=0.20.1",
        "transformers>=4.57,<6",  # older ones do not ask a registered attention function for its mask
        "numpy>=1.26",
        "scipy>=1.11",
        "opencv-python-headless>=4.10",
        "pillow>=10",
        "PyYAML>=6.0.1",
        "safetensors>=0.4.3",
        "hydra-core>=1.3.2",  # reads sam2's configuration files
        "rosbags>=0.11",
        "rosbags-image>=0.10.2",
    ],
    extras_require={
        # Apart, because it comes as source: SAM2_BUILD_CUDA=0 pip install --no-build-isolation 'decaf_ros[sam2]'
        "sam2": ["sam2>=1.1,<2"],
        # `mllm.quantization`: one package for each kind. Tested with the oldest and 0.50, 0.18, 1.15.
        "bitsandbytes": ["bitsandbytes>=0.47,<1", "accelerate>=1.1,<2"],
        "torchao": ["torchao>=0.15,<1", "accelerate>=1.1,<2", "torch>=2.6"],  # does not run with torch 2.5
        # `decaf simulate`: renders with EGL (Debian: libegl1) or OSMesa (libosmesa6).
        "tabletop": [
            "mujoco>=3.3",
        ],
        "test": ["pytest>=7.4"],
    },
)
