"""Consistency of the package files with each other and with the code."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
import zipfile
from pathlib import Path

import pytest
import yaml
from recordings import write_depth_bag
from sam2.build_sam import HF_MODEL_ID_TO_FILENAMES

import decaf_ros
from decaf_ros.config import DecafConfig, options
from decaf_ros.doctor.packages import REQUIREMENTS
from decaf_ros.io.cameras import split_cameras
from decaf_ros.io.layouts import LAYOUTS, layout
from decaf_ros.io.parameter_files import load_config
from decaf_ros.resources import resolve_path
from decaf_ros.types import QueryState, TargetState

ROOT = Path(__file__).parents[1]
PACKAGE = ElementTree.parse(ROOT / "package.xml").getroot()
CMAKE = (ROOT / "CMakeLists.txt").read_text()
PROFILE = ROOT / "config" / "fastdds_large_shm.xml"
DEPTH = ("depth", "camera_info", "depth_camera_info")
REPLAYED = ("image", "cameras", "depth", "camera_info", "rate", "loop", "query", "query_at")


def test_one_version():
    command = [sys.executable, "setup.py", "--version"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.split()[-1] == decaf_ros.__version__
    assert PACKAGE.findtext("version") == decaf_ros.__version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == decaf_ros.__version__


def test_cmake_generates_every_definition():
    files = [file for kind in ("msg", "srv", "action") for file in ROOT.glob(f"{kind}/*.{kind}")]
    definitions = {f"{file.parent.name}/{file.name}" for file in files}
    assert set(re.findall(r"^\s+((?:msg|srv|action)/\S+)$", CMAKE, re.MULTILINE)) == definitions


def test_cmake_installs_every_executable():
    installed = re.search(r"install\(PROGRAMS (.+) DESTINATION lib/\$\{PROJECT_NAME\}\)", CMAKE)[1].split()
    assert sorted(installed) == sorted(f"bin/{file.name}" for file in ROOT.glob("bin/*"))
    for program in installed:
        assert os.access(ROOT / program, os.X_OK), program
        target = re.search(r"from decaf_ros\.(\S+) import main", (ROOT / program).read_text())[1]
        assert (ROOT / "decaf_ros" / f"{target.replace('.', '/')}.py").is_file()


def test_cmake_installs_all_folders_and_setup_links_them():
    installed = re.search(r"install\(DIRECTORY ([\w ]+) DESTINATION share/\$\{PROJECT_NAME\}", CMAKE)[1].split()
    packages = re.findall(r"install\(DIRECTORY (\w+)/", CMAKE)
    shared = ["config", "examples", "foxglove", "launch", "rviz"]
    assert (sorted(installed), sorted(packages)) == (shared, ["decaf_ros", "decaf_tabletop"])
    linked = re.findall(r"parts \+?= \((.+)\)", (ROOT / "scripts" / "setup_env.py").read_text())
    linked = ", ".join(linked)
    assert all(f'"{folder}"' in linked for folder in (*installed, *packages))
    assert CMAKE.count(decaf_ros.__version__) == CMAKE.count("0.1.0") == 2


def test_a_wheel_has_everything(tmp_path):
    """Parameter files, message definitions, checkpoints of the table and entry points."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "build", "install", "site", "*.egg-info"))
    subprocess.run([*command, "--wheel-dir", tmp_path, source], check=True)
    (file,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(file) as wheel:
        names = set(wheel.namelist())
        plugins = wheel.read("decaf_ros-0.1.0.dist-info/entry_points.txt").decode()
    assert "simulate = decaf_tabletop.simulate:add_parser" in plugins and "decaf = decaf_ros.cli.main:main" in plugins
    data = "decaf_ros-0.1.0.data/data/share/decaf_ros"
    shared = ["config/decaf.yaml", "config/fastdds_large_shm.xml", "msg/Tracklet.msg", "action/Segment.action"]
    for name in (*shared, *LAYOUTS.values()):
        assert f"{data}/{name}" in names
    assert {f"{data}/{file}" for file in REQUIREMENTS} < names
    tracked = [*ROOT.glob("decaf_tabletop/models/*/*"), *ROOT.glob("decaf_*/**/*.py"), ROOT / "decaf_ros" / "py.typed"]
    tracked += [*ROOT.glob("decaf_tabletop/config/*"), *ROOT.glob("decaf_tabletop/demo/bags/*/*")]
    needed = {str(file.relative_to(ROOT)) for file in tracked}
    assert needed - names == set()
    assert not any(name.startswith("test") for name in names)


def test_the_command_of_the_readme_runs(tmp_path):
    """As after `make setup`, with stand-ins for the two scripts that it makes."""
    for name, stand_in in (
        (".venv/bin/activate", f'PATH="{Path(sys.executable).parent}:$PATH"'),
        ("install/setup.bash", "export PYTHONPATH="),
    ):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(stand_in)
    for name in ("scripts", "bin", "decaf_ros", "decaf_tabletop"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    named = re.search(r"scripts/with_env\.sh (decaf \w+)", (ROOT / "README.md").read_text())[1].split()
    command = [tmp_path / "scripts" / "with_env.sh", *named, "--help"]
    result = subprocess.run(command, cwd="/", capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout.startswith("usage: decaf segment"), result.stderr


def test_packages_that_parameter_files_name_exist():
    texts = [file.read_text() for file in (*ROOT.glob("config/*.yaml"), *ROOT.glob("decaf_tabletop/config/*.yaml"))]
    urls = {url for text in texts for url in re.findall(r"package://\S+", text)}
    assert len(urls) == 2 and all(Path(resolve_path(url)).is_dir() for url in urls)


def test_package_xml_names_every_ros_import():
    declared = {element.text for tag in ("depend", "exec_depend") for element in PACKAGE.iter(tag)}
    imported = set()
    for file in (ROOT / "decaf_ros" / "nodes").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(node.module.split(".")[0])
    ros = {name for name in imported if name in declared or name.endswith(("_msgs", "_interfaces", "_bridge"))}
    assert "rclpy" in ros
    assert ros - declared == set()


@pytest.mark.parametrize("name", ["decaf.yaml", "paper.yaml"])
def test_parameter_file_holds_only_changed_options(name: str):
    config = load_config(ROOT / "config" / name)
    defaults = {option.name: option.value for option in options(DecafConfig())}
    stages = yaml.safe_load((ROOT / "config" / name).read_text())["/**"]["ros__parameters"]
    named = {f"{stage}.{field}" for stage, fields in stages.items() for field in fields}
    assert named == {option.name for option in options(config) if option.value != defaults[option.name]}


def test_the_published_protocol():
    """Values that the published implementation runs with, whether or not they are defaults."""
    published = {
        "mllm.dtype": "cuda_bfloat16",
        "mllm.video_tokens": 400,
        "mllm.frame_scale": 2,
        "mllm.max_new_tokens": 128,
        "grounding.mode": "paper",
        "grounding.wording": "published",
        "grounding.start_layer": -1,
        "grounding.branches": "both",
        "sam2.checkpoint": "facebook/sam2-hiera-large",
        "sam2.autocast": False,
        "sam2.blank_unseen": True,
        "segmentation.points": "threshold",
        "segmentation.point_threshold": 0.8,
        "segmentation.max_points": 100000,
        "segmentation.tracklet_threshold": 0.8,
        "segmentation.suppression_iou": 0.7,
        "segmentation.fill_holes_px": 8,
        "segmentation.fallback": "best",
        "presence.threshold": 0.0,
        "presence.ask": False,
        "window.size": 16,
        "window.clip_rounding": "down",
        "window.max_side": 0,
    }
    config = {option.name: option.value for option in options(load_config(ROOT / "config" / "paper.yaml"))}
    assert {name: config[name] for name in published} == published
    assert config["sam2.checkpoint"] in HF_MODEL_ID_TO_FILENAMES


def test_parameter_files_keep_floats_floats():
    """rclpy refuses an integer for a floating-point parameter, load_config accepts it."""
    for file in [*ROOT.glob("config/*.yaml"), *ROOT.glob("decaf_tabletop/config/*.yaml")]:
        stages = yaml.safe_load(file.read_text())["/**"]["ros__parameters"]
        for option in options(load_config(file)):
            stage, _, field = option.name.partition(".")
            if field in stages.get(stage, {}):
                assert type(stages[stage][field]) is type(option.value), f"{file.name}: {option.name}"


def test_the_robot_configuration_allows_not_found():
    config = load_config(ROOT / "config" / "decaf.yaml")
    assert config.segmentation.fallback == "none" and config.presence.threshold > 0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "decaf",
            {
                "params_file",
                "namespace",
                "image",
                "cameras",
                "log_level",
                "rviz",
                "fixed_frame",
                "overrides",
                "enclave",
                *DEPTH,
            },
        ),
        ("rviz", {"namespace", "camera", "image", "fixed_frame"}),
        ("replay", {"bag", *REPLAYED, "params_file", "namespace", "rviz", "fixed_frame", "log_level"}),
    ],
)
def test_launch_files_compile_and_declare_their_arguments(name: str, expected: set[str]):
    source = (ROOT / "launch" / f"{name}.launch.py").read_text()
    compile(source, f"{name}.launch.py", "exec")
    # Named in a call, or as the keys of the tables from which they are declared.
    arguments = set(re.findall(r'DeclareLaunchArgument\(\s*"(\w+)"', source))
    arguments |= set(re.findall(r'^    "(\w+)": \(', source, re.MULTILINE))
    assert arguments == expected
    fields = {option.name.split(".")[-1] for option in options(DecafConfig())}
    assert arguments & fields <= {"cameras"}, "a launch argument repeats a key of the parameter file"


@pytest.mark.parametrize(
    "text, cameras",
    [
        ("", {}),
        ("wrist", {"wrist": ""}),
        ("wrist,head", {"wrist": "", "head": ""}),
        ("[wrist, head]", {"wrist": "", "head": ""}),
        ("wrist=/wrist/image_raw, head=/head", {"wrist": "/wrist/image_raw", "head": "/head"}),
    ],
)
def test_cameras_of_the_launch_file(text, cameras):
    assert split_cameras(text) == cameras


@pytest.mark.parametrize("text", [",", "wrist,", "wrist,wrist=/a", "=/a", "image", "[[wrist]]"])
def test_bad_cameras_of_the_launch_file(text):
    with pytest.raises(ValueError, match="cameras: expected"):
        split_cameras(text)


def _launch_file(name: str):
    """The module of a launch file. Skips without launch_ros, which is on no registry."""
    pytest.importorskip("launch_ros")
    spec = importlib.util.spec_from_file_location(f"{name}_launch", ROOT / "launch" / f"{name}.launch.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("cameras", ["", "wrist=/wrist_camera/image_raw,head"])
def test_launch_description(cameras):
    pytest.importorskip("launch_ros")
    from launch import LaunchContext
    from launch.actions import DeclareLaunchArgument, OpaqueFunction
    from launch_ros.actions import Node

    module = _launch_file("decaf")
    context = LaunchContext()
    context.launch_configurations["cameras"] = cameras
    context.launch_configurations["overrides"] = "{use_sim_time: true, node.image_transport: compressed}"
    context.launch_configurations["depth"] = "wrist=/wrist_camera/depth" if cameras else "/depth"
    context.launch_configurations["camera_info"] = "wrist=/wrist_camera/info" if cameras else "/info"
    entities = module.generate_launch_description().entities
    for entity in entities:
        if isinstance(entity, DeclareLaunchArgument):
            entity.execute(context)
    with_rviz, function = (entity for entity in entities if isinstance(entity, OpaqueFunction))
    (group,) = with_rviz.execute(context)
    assert not group.condition.evaluate(context), "without RViz by default"
    (node,) = function.execute(context)
    assert isinstance(node, Node)
    assert Path(context.launch_configurations["params_file"]).is_file()
    assert context.launch_configurations["namespace"] == "decaf"
    assert (node.node_package, node.node_executable) == ("decaf_ros", "segmenter")
    node._perform_substitutions(context)
    expected = {"image": "image", "image/compressed": "image/compressed"}
    own, topic = ("wrist/", "/wrist_camera") if cameras else ("", "")
    expected |= {f"{own}depth": f"{topic}/depth", f"{own}depth/compressedDepth": f"{topic}/depth/compressedDepth"}
    expected |= {f"{own}camera_info": f"{topic}/info"}
    if cameras:
        expected |= {"wrist/image": "/wrist_camera/image_raw"}
        expected |= {"wrist/image/compressed": "/wrist_camera/image_raw/compressed"}
    assert dict(node.expanded_remapping_rules) == expected
    files = [Path(path) for path, is_file in node._Node__expanded_parameter_arguments if is_file]
    configs = [load_config(file) for file in files]
    assert [config.cameras for config in configs] == ([(), ("wrist", "head"), (), ()] if cameras else [(), (), ()])
    assert [config.space.enabled for config in configs] == [False] * (len(configs) - 2) + [True, False]
    # The last file wins.
    assert [config.node.image_transport for config in configs] == ["raw"] * (len(configs) - 1) + ["compressed"]
    context.launch_configurations["overrides"] = "node.image_transport"
    with pytest.raises(ValueError, match="overrides: expected {NAME: VALUE, ...}, got 'node.image_transport'"):
        function.execute(context)


def test_rviz_is_started_with_the_names_of_the_camera(tmp_path, monkeypatch):
    module = _launch_file("rviz")
    from launch import LaunchContext
    from launch.event_handlers import OnShutdown

    context = LaunchContext()
    names = {"namespace": "robot", "camera": "wrist", "image": "/wrist/image_raw", "fixed_frame": "base"}
    context.launch_configurations.update(names)
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path))
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path))
    with pytest.raises(RuntimeError, match="rviz: expected the package rviz2, got none .*sudo apt install"):
        module.make_rviz(context)
    (tmp_path / "share" / "ament_index" / "resource_index" / "packages").mkdir(parents=True)
    (tmp_path / "share" / "ament_index" / "resource_index" / "packages" / "rviz2").touch()
    node, removal = module.make_rviz(context)
    assert (node.node_package, node.node_executable) == ("rviz2", "rviz2")
    (file,) = tmp_path.glob("decaf_*.rviz")
    assert file.read_text() == layout("rviz", **names)
    assert isinstance(removal.event_handler, OnShutdown)


@pytest.mark.parametrize("names", [(), ("wrist", "head")])
def test_a_replay_starts_the_node_for_the_topics_of_the_bag(names, tmp_path):
    module = _launch_file("replay")
    from launch import LaunchContext
    from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
    from launch_ros.actions import Node

    bag = write_depth_bag(tmp_path / "bag", names)
    context = LaunchContext()
    configurations = context.launch_configurations
    configurations |= {"bag": str(bag), "loop": "true", "query": "the red box", "namespace": "eyes"}
    own = [f"{name}=/{name}" if name else "" for name in names or ("",)]
    configurations["cameras"] = ",".join(f"{each}/image" for each in own) if names else ""
    configurations["depth"] = ",".join(f"{each}/depth" for each in own)
    configurations["camera_info"] = ",".join(f"{each}/camera_info" for each in own)
    for entity in module.generate_launch_description().entities:
        if isinstance(entity, DeclareLaunchArgument):
            entity.execute(context)
    group, player = module.replay(context)
    (include,) = (each for each in group.get_sub_entities() if isinstance(each, IncludeLaunchDescription))
    passed = dict(include.launch_arguments)
    expected = {"image": "image" if names else "/image", "cameras": configurations["cameras"]}
    expected |= {key: configurations[key] for key in ("depth", "camera_info", "namespace")}
    assert {key: passed[key] for key in expected} == expected and passed["fixed_frame"] == "cam"
    transports = {"node.image_transport": "compressed", "space.depth_transport": "raw"}
    assert yaml.safe_load(passed["overrides"]) == {"use_sim_time": True, **transports}
    assert isinstance(player, Node) and player.node_executable == "player"


@pytest.mark.ros
def test_message_constants_are_the_enums():
    messages = pytest.importorskip("decaf_ros.msg")
    for state in QueryState:
        assert getattr(messages.QueryStatus, state.name) == state
    for state in TargetState:
        assert getattr(messages.Tracklet, f"STATE_{state.name}") == state


@pytest.mark.ros
def test_fastdds_accepts_the_profile():
    """With the profile the shared-memory segment of a participant has 16 MiB; the default is 0.5 MiB."""
    pytest.importorskip("rclpy")
    program = (
        "import glob, os, rclpy\n"
        "before = set(glob.glob('/dev/shm/fast*'))\n"
        "rclpy.init()\n"
        "node = rclpy.create_node('shared_memory')\n"
        "print(max(os.path.getsize(file) for file in set(glob.glob('/dev/shm/fast*')) - before))\n"
        "node.destroy_node()\n"
        "rclpy.shutdown()\n"
    )
    names = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")
    environment = {**os.environ, **dict.fromkeys(names, str(PROFILE)), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert int(result.stdout) >= 16 * 2**20
    assert "XMLPARSER" not in result.stderr
