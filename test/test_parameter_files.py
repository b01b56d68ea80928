"""Parameter files, compared with a real rclpy node."""

from __future__ import annotations

import math

import pytest

from decaf_ros.config import DecafConfig
from decaf_ros.io.parameter_files import load_config, plain_value, read_parameters

INF = math.inf
VALUES = {
    **{text: True for text in ("y", "Y", "yes", "Yes", "YES", "on", "On", "ON", "true", "True", "TRUE")},
    **{text: False for text in ("n", "N", "no", "No", "NO", "off", "Off", "OFF", "false", "False", "FALSE")},
    **{text: 5 for text in ("5", "+5", "05", "0x5", "! 5", "!!int 5", "!!float 5", "5 # five", "\n      5")},
    **{"-5": -5, "010": 8, "-010": -8, "0x1F": 31, "-0": 0, "00": 0, "9223372036854775807": 2**63 - 1},
    **{
        text: 5.0 for text in ("5e0", "5.", "5.0", "+5.0", ".5e1", "0.5E+1", "50e-1", "0x5.", "0xap-1", ">-\n      5e0")
    },
    **{"1e3": 1000.0, ".5": 0.5, "-.5": -0.5, "08": 8.0, "1.e2": 100.0, "0x1p3": 8.0, "0e0": 0.0},
    **{
        "9223372036854775808": 2.0**63,
        "-9223372036854775809": -(2.0**63),
        "0777777777777777777777777": 7.777777777777777e23,
    },
    **{text: INF for text in (".inf", ".Inf", "+.INF", "inf", "Infinity")},
    **{text: -INF for text in ("-.inf", "-inf")},
    **{text: text for text in ("yEs", "tRUE", "null", "~", "1_000", "1:30", "0b101", "0o17", "0x", "0x1g", "1e", "e5")},
    **{text: text for text in ("1e400", "1e-400", "-.nan", ".nAn", "1,5", ".", "+", "2024-01-01", "5 x", "é")},
    **{"'5'": "5", '"yes"': "yes", "!!str 5": "5", "''": "", "|\n      5": "5\n", "|-\n      off": False},
    **{"[1, 0x2]": [1, 2], "[yes, no]": [True, False], "[1.0, 5e0]": [1.0, 5.0], "[a, '5']": ["a", "5"]},
}
BEFORE = "/**: {ros__parameters: {a: 1, b: 1}}\n"
# Sections, the node's name, and what it gets of a and b.
SECTIONS = [
    ("/decaf/segmenter: {ros__parameters: {a: 2}}\n", "/decaf/segmenter", (2, 1)),
    ("decaf/segmenter: {ros__parameters: {a: 2}}\n", "/decaf/segmenter", (2, 1)),
    ("decaf: {segmenter: {ros__parameters: {a: 2}}}\n", "/decaf/segmenter", (2, 1)),
    ("/: {segmenter: {ros__parameters: {a: 2}}}\n", "/segmenter", (2, 1)),
    ("segmenter: {ros__parameters: {a: 2}}\n", "/segmenter", (2, 1)),
    ("segmenter: {ros__parameters: {a: 2}}\n", "/decaf/segmenter", (1, 1)),
    ("lidar_segmenter: {ros__parameters: {a: 2}}\n", "/segmenter", (1, 1)),
    ("/decaf/lidar_segmenter: {ros__parameters: {a: 2}}\n", "/decaf/segmenter", (1, 1)),
    ("/decaf/segmenter_2: {ros__parameters: {a: 2}}\n", "/decaf/segmenter", (1, 1)),
    ("/*: {ros__parameters: {a: 2}}\n", "/segmenter", (2, 1)),
    ("/*: {ros__parameters: {a: 2}}\n", "/decaf/segmenter", (1, 1)),
    ("/*/*: {ros__parameters: {a: 2}}\n", "/decaf/segmenter", (2, 1)),
    ("/*/segmenter: {ros__parameters: {a: 2}}\n", "/decaf/segmenter", (2, 1)),
    ("/**/segmenter: {ros__parameters: {a: 2}}\n", "/segmenter", (2, 1)),
    ("/**/segmenter: {ros__parameters: {a: 2}}\n", "/a/b/segmenter", (2, 1)),
    ("/a/**: {ros__parameters: {a: 2}}\n", "/a/b/segmenter", (2, 1)),
    ("/b/**: {ros__parameters: {a: 2}}\n", "/a/b/segmenter", (1, 1)),
    ("/**: {ros__parameters: {a: 2}}\n", "/segmenter", (2, 1)),
    ("segmenter: {ros__parameters: {a: 2}}\n/*: {ros__parameters: {a: 3, b: 3}}\n", "/segmenter", (3, 3)),
    ("---\n/**: {ros__parameters: {a: 2}}\n", "/segmenter", (2, 1)),
    (
        "segmenter: {ros__parameters: {a: 2}}\n/*: {ros__parameters: {a: 3}}\nsegmenter: {ros__parameters: {a: 4}}\n",
        "/segmenter",
        (3, 1),
    ),
]
REFUSED = {
    "a:": "line 3: expected a value, got none",
    "a: !!str": "line 3: expected a value, got none",
    "a: &x 5\n    b: *x": "line 4: expected a value .*no aliases",
    "a: [1, 2.0]": "line 3: expected values of one type",
    "a: [[1], [2]]": "line 3: expected a value .*nested lists",
    "[a]: 5": "line 3: expected a name",
    "'': 5": "line 3: expected a name",
    "a: [1": "expected YAML",
    "a: {": "expected YAML",
    "a: \t\n\tb: 5": "expected YAML",
}


def file_of(tmp_path, text):
    file = tmp_path / "robot.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def values_file(tmp_path):
    lines = "".join(f"    v{number}: {text}\n" for number, text in enumerate(VALUES))
    return file_of(tmp_path, f"/**:\n  ros__parameters:\n{lines}")


@pytest.fixture
def rclpy_parameters(monkeypatch):
    """The parameters that a real node reads from a file, by name."""
    rclpy = pytest.importorskip("rclpy")
    domain_coordinator = pytest.importorskip("domain_coordinator")
    from rclpy.context import Context
    from rclpy.node import Node

    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    with domain_coordinator.domain_id() as domain_id:
        context = Context()
        rclpy.init(context=context, domain_id=domain_id)

        def read(file, name):
            namespace, _, own = name.rpartition("/")
            node = Node(
                own,
                namespace=namespace or "/",
                context=context,
                cli_args=["--ros-args", "--params-file", str(file)],
                automatically_declare_parameters_from_overrides=True,
            )
            found = {one: parameter.value for one, parameter in node.get_parameters_by_prefix("").items()}
            node.destroy_node()
            return {
                one: list(value) if hasattr(value, "__len__") and not isinstance(value, str) else value
                for one, value in found.items()
                if one not in ("use_sim_time", "start_type_description_service")
            }

        yield read
        context.try_shutdown()


def typed(parameters):
    return {name: (type(value), value) for name, value in parameters.items()}


def test_values(tmp_path):
    found = read_parameters(values_file(tmp_path))
    assert typed(found) == typed({f"v{number}": value for number, value in enumerate(VALUES.values())})
    assert all(math.isnan(plain_value(text)) for text in (".nan", ".NaN", ".NAN", "nan", "-NaN"))


@pytest.mark.ros
def test_rclpy_reads_equal_values(tmp_path, rclpy_parameters):
    file = values_file(tmp_path)
    assert typed(rclpy_parameters(file, "/decaf/segmenter")) == typed(read_parameters(file))


@pytest.mark.parametrize(("sections", "node", "expected"), SECTIONS)
def test_sections_of_a_node(tmp_path, sections, node, expected):
    found = read_parameters(file_of(tmp_path, BEFORE + sections), node)
    assert (found["a"], found["b"]) == expected


@pytest.mark.ros
def test_rclpy_reads_equal_sections(tmp_path, rclpy_parameters):
    for sections, node, (a, b) in SECTIONS:
        file = file_of(tmp_path, BEFORE + sections)
        assert rclpy_parameters(file, node) == {"a": a, "b": b}, (sections, node)


@pytest.mark.parametrize(("text", "message"), REFUSED.items())
def test_files_that_rclpy_cannot_read(tmp_path, text, message):
    with pytest.raises(ValueError, match=rf"robot\.yaml: {message}"):
        read_parameters(file_of(tmp_path, f"/**:\n  ros__parameters:\n    {text}\n"))


@pytest.mark.ros
def test_rclpy_refuses_the_same_files(tmp_path, rclpy_parameters):
    for text in REFUSED:
        file = file_of(tmp_path, f"/**:\n  ros__parameters:\n    {text}\n")
        with pytest.raises(Exception, match="[Pp]arse|failed"):
            pytest.fail(f"{text}: {rclpy_parameters(file, '/decaf/segmenter')}")


def test_names_may_be_nested_or_dotted_or_repeated(tmp_path):
    text = "a: {b: {c: 1, d: 2}}\n    a.b.d: 3\n    a: {b: {e: 4}}"
    found = read_parameters(file_of(tmp_path, f"/**:\n  ros__parameters:\n    {text}\n"))
    assert found == {"a.b.c": 1, "a.b.d": 3, "a.b.e": 4}


def test_the_node_of_a_file_without_a_given_name(tmp_path):
    """The only segmenter of the file, in any namespace, else the one that the launch file starts."""
    robot = "/camera: {ros__parameters: {a: 9}}\n/lidar_segmenter: {ros__parameters: {a: 8}}\n"
    front, rear = (f"/{name}/segmenter: {{ros__parameters: {{a: {name}}}}}\n" for name in ("front", "rear"))
    assert read_parameters(file_of(tmp_path, robot + front)) == {"a": "front"}
    file = file_of(tmp_path, robot + front + rear)
    with pytest.raises(ValueError, match="expected one segmenter, got /front/segmenter, /rear/segmenter; .* --node"):
        read_parameters(file)
    assert read_parameters(file, "/rear/segmenter") == {"a": "rear"}
    with pytest.raises(ValueError, match=r"section '/\*\*' or '/decaf/segmenter', got /camera, /lidar_segmenter$"):
        read_parameters(file_of(tmp_path, robot))
    assert read_parameters(file_of(tmp_path, "segmenter: {ros__parameters: {}}\n")) == {}


def test_a_float_written_as_an_exponent_is_no_text(tmp_path):
    file = file_of(tmp_path, "/**: {ros__parameters: {window: {patience_s: 5e0}, grounding: {contrast: off}}}\n")
    config = load_config(file)
    assert (config.window.patience_s, config.grounding.contrast) == (5.0, False)
    assert config.presence == DecafConfig().presence
