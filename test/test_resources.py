from __future__ import annotations

from pathlib import Path

import pytest

from decaf_ros.resources import find_resource

ROOT = Path(__file__).parents[1]


def test_files_and_folders_of_the_checkout():
    assert find_resource("config/paper.yaml") == ROOT / "config" / "paper.yaml"
    assert find_resource("msg") == ROOT / "msg"


def test_beside_an_installed_package(tmp_path: Path):
    module = tmp_path / "lib" / "python3.11" / "site-packages" / "decaf_ros" / "x.py"
    file = tmp_path / "share" / "decaf_ros" / "decaf_tabletop" / "config" / "tabletop.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("")
    assert find_resource("decaf_tabletop/config/tabletop.yaml", module) == file


def test_what_is_missing_is_named_with_where_it_was_sought():
    with pytest.raises(FileNotFoundError, match="config/nothing.yaml: not found in any of .*share/decaf_ros"):
        find_resource("config/nothing.yaml")
