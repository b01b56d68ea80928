from __future__ import annotations

from pathlib import Path

import pytest

from decaf_ros.resources import find_resource, resolve_path

ROOT = Path(__file__).parents[1]


def test_files_and_folders_of_the_checkout():
    assert find_resource("config/paper.yaml") == ROOT / "config" / "paper.yaml"
    assert find_resource("msg") == ROOT / "msg"


@pytest.mark.parametrize(
    "packages",
    ["lib/python3.11/site-packages", "local/lib/python3.10/dist-packages", "."],
    ids=["pip and colcon", "colcon on Ubuntu 22.04", "pip --target"],
)
def test_beside_an_installed_package(tmp_path: Path, packages: str):
    module = tmp_path / packages / "decaf_ros" / "resources.py"
    file = tmp_path / "share" / "decaf_ros" / "config" / "decaf.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("")
    assert find_resource("config/decaf.yaml", module) == file


def test_what_is_missing_is_named_with_where_it_was_sought():
    with pytest.raises(FileNotFoundError, match="config/nothing.yaml: not found in any of .*share/decaf_ros"):
        find_resource("config/nothing.yaml")


def test_urls_of_packages(tmp_path, monkeypatch):
    assert resolve_path("package://decaf_ros/config/paper.yaml") == str(ROOT / "config" / "paper.yaml")
    models = ROOT / "decaf_tabletop" / "models"
    assert resolve_path("package://decaf_tabletop/models/tabletop_sam2") == str(models / "tabletop_sam2")
    (tmp_path / "share" / "my-models" / "mug").mkdir(parents=True)
    monkeypatch.setenv("AMENT_PREFIX_PATH", f"/nowhere:{tmp_path}")
    assert resolve_path("package://my-models/mug") == str(tmp_path / "share" / "my-models" / "mug")
    for other in ("Qwen/Qwen2.5-VL-7B-Instruct", "/models/mug", "package://decaf_ros"):
        assert resolve_path(other) == other
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_path("~/models/mug") == str(tmp_path / "models" / "mug")
    with pytest.raises(FileNotFoundError, match="plate: not found in any of .*my-models"):
        resolve_path("package://my-models/plate")
    with pytest.raises(FileNotFoundError, match="mug: its package is not installed"):
        resolve_path("package://no_such_package/mug")
