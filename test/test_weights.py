"""`decaf weights` against a hub on this machine, and what loading asks the hub for."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from hub_server import COMMIT, running_hub, sha256
from safetensors.torch import save_file

from decaf_ros.cli.main import main
from decaf_ros.config import MllmConfig, Sam2Config
from decaf_ros.grounding.loading import load_mllm
from decaf_ros.segmentation.sam2_loading import load_sam2
from decaf_ros.weights.folders import SUMS, check_folder
from tiny_models.sam2 import write_tiny_sam2

ROOT = Path(__file__).parents[1]
MLLM, SAM2 = "tests/tiny-mllm", "facebook/sam2.1-hiera-tiny"
WEIGHTS = "model.safetensors"
STORED = f"/stored/{MLLM}/resolve/{COMMIT}/{WEIGHTS}"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch, tmp_path):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))


@pytest.fixture
def hub(tiny_mllm_dir, tmp_path):
    """Two repositories with files that loading does not need."""
    mllm, sam2 = tmp_path / "hub_mllm", tmp_path / "hub_sam2"
    shutil.copytree(tiny_mllm_dir, mllm)
    (mllm / "picture.png").write_bytes(b"no picture")
    (mllm / "other").mkdir()
    (mllm / "other" / WEIGHTS).write_bytes(b"of another size")
    sam2.mkdir()
    torch.save({"model": {"weight": torch.zeros(50_000)}}, sam2 / "sam2.1_hiera_tiny.pt")
    (sam2 / "sam2.1_hiera_t.yaml").write_text("model: {}\n")
    (sam2 / "config.json").write_text("{}")
    (sam2 / WEIGHTS).write_bytes(b"of another library")
    with running_hub({MLLM: mllm, SAM2: sam2}) as server:
        yield server


def get(hub, folder, *names):
    return main(["weights", "get", *(names or (MLLM,)), "--to", str(folder), "--endpoint", hub.url])


def test_get_check_and_load(hub, tmp_path, capsys):
    to = tmp_path / "models"
    assert get(hub, to, MLLM, SAM2) == 0
    out = capsys.readouterr().out
    assert f"set mllm.checkpoint to {to / MLLM} and mllm.local_files_only to true" in out
    assert f"set sam2.checkpoint to {to / SAM2} and sam2.local_files_only to true" in out
    original = hub.repositories[MLLM]
    names = {file.name for file in (to / MLLM).iterdir()}
    assert names == {file.name for file in original.iterdir()} - {"picture.png", "other"} | {SUMS}
    assert {file.name for file in (to / SAM2).iterdir()} == {"sam2.1_hiera_tiny.pt", "sam2.1_hiera_t.yaml", SUMS}
    assert f"{sha256((original / WEIGHTS).read_bytes())}  {WEIGHTS}\n" in (to / MLLM / SUMS).read_text()
    assert load_mllm(MllmConfig(checkpoint=str(to / MLLM), local_files_only=True, dtype="float32")).layers
    assert main(["weights", "check", str(to)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"ok           {to / name}: checksums" for name in (SAM2, MLLM)]
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--check", "--quiet", SUMS], cwd=to / MLLM, check=True)


def test_get_of_a_revision(hub, tmp_path):
    assert get(hub, tmp_path / "models", SAM2, "--revision", "v1") == 0
    assert f"/api/models/{SAM2}/revision/v1" in hub.paths()


def test_get_goes_on_where_it_broke(hub, tmp_path, capsys):
    to = tmp_path / "models"
    # huggingface_hub writes 10 MiB at a time.
    save_file({"weight": torch.arange(6_000_000.0)}, hub.repositories[MLLM] / WEIGHTS)
    hub.break_at = 12_000_000
    assert get(hub, to) == 1
    assert "run the command again" in capsys.readouterr().err
    assert not (to / MLLM).exists(), "half a checkpoint has its final name"
    hub.break_at = None
    hub.requests.clear()
    capsys.readouterr()
    assert get(hub, to) == 0
    ranges = [given for method, path, given in hub.requests if method == "GET" and path == STORED]
    assert ranges == [f"bytes={10 * 2**20}-"]
    assert re.search(r"^config.json \(\d+ of \d+\): already there$", capsys.readouterr().out, re.MULTILINE)
    assert main(["weights", "check", str(to / MLLM)]) == 0
    assert (to / MLLM / WEIGHTS).read_bytes() == (hub.repositories[MLLM] / WEIGHTS).read_bytes()
    assert not list(to.rglob("*.part"))


def test_a_false_checksum_is_refused(hub, tmp_path, capsys):
    hub.falsify = True
    assert get(hub, tmp_path / "models") == 1
    assert f"{WEIGHTS} came with another checksum than the hub's" in capsys.readouterr().err
    assert not (tmp_path / "models" / MLLM).exists()
    hub.falsify = False
    assert get(hub, tmp_path / "models") == 0


def test_a_changed_file_is_found_and_replaced(hub, tmp_path, capsys):
    to = tmp_path / "models"
    get(hub, to)
    weights = to / MLLM / WEIGHTS
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert check_folder(to / MLLM, checksums=False) == [], "its header is whole"
    assert main(["weights", "check", str(to)]) == 1
    assert f"{WEIGHTS}: expected SHA-256" in capsys.readouterr().out
    hub.requests.clear()
    assert get(hub, to) == 0
    assert [path for path in hub.paths() if "/resolve/" in path] == [STORED.removeprefix("/stored"), STORED]
    assert main(["weights", "check", str(to)]) == 0


@pytest.mark.parametrize(("name", "message"), [("tests/nothing", "404"), ("not a name", "Repo id")])
def test_names_that_the_hub_does_not_have(hub, tmp_path, capsys, name, message):
    assert get(hub, tmp_path, name) == 1
    assert message in capsys.readouterr().err


def test_a_repository_without_weights(hub, tmp_path, capsys):
    (hub.repositories[MLLM] / WEIGHTS).unlink()
    assert get(hub, tmp_path / "models") == 1
    assert f"{MLLM}: expected a repository with weights" in capsys.readouterr().err


def test_check_of_no_checkpoint(tmp_path, capsys):
    assert main(["weights", "check", str(tmp_path / "nowhere")]) == 1
    assert "expected a folder with a checkpoint" in capsys.readouterr().err


# The files themselves


def sharded(folder, tiny_mllm_dir):
    """The tiny checkpoint in several shards."""
    whole = load_mllm(MllmConfig(checkpoint=str(tiny_mllm_dir), local_files_only=True, dtype="float32"))
    shutil.copytree(tiny_mllm_dir, folder)
    (folder / WEIGHTS).unlink()
    whole.model.save_pretrained(folder, max_shard_size="200KB")
    return sorted(folder.glob("model-*.safetensors"))


def test_shards(tiny_mllm_dir, tmp_path):
    folder = tmp_path / "model"
    shards = sharded(folder, tiny_mllm_dir)
    assert len(shards) > 2 and check_folder(folder, checksums=False) == []
    content = shards[0].read_bytes()
    shards[0].write_bytes(content[:-100])
    expected = f"{shards[0].name}: expected {len(content)} bytes by its header, got {len(content) - 100}"
    assert check_folder(folder, checksums=False) == [expected]
    shards[0].write_bytes(content[:5])
    assert check_folder(folder, checksums=False) == [f"{shards[0].name}: expected a safetensors file, got 5 bytes"]
    shards[0].write_bytes(content)
    save_file({"another": torch.zeros(3)}, shards[1])
    assert f"{shards[1].name}: " in (found := check_folder(folder, checksums=False))[0] and "are missing" in found[0]
    shards[1].unlink()
    assert check_folder(folder, checksums=False) == [f"missing in the folder {folder}: {shards[1].name}"]


def test_a_truncated_file_of_torch(tmp_path):
    torch.save({"model": {"weight": torch.zeros(5000)}}, tmp_path / "sam2.1_hiera_tiny.pt")
    assert zipfile.is_zipfile(tmp_path / "sam2.1_hiera_tiny.pt") and check_folder(tmp_path, checksums=False) == []
    content = (tmp_path / "sam2.1_hiera_tiny.pt").read_bytes()
    (tmp_path / "sam2.1_hiera_tiny.pt").write_bytes(content[:-500])
    (error,) = check_folder(tmp_path, checksums=False)
    assert error.startswith("sam2.1_hiera_tiny.pt: expected the whole file of torch.save")


def test_a_folder_of_our_sam2_is_whole(tmp_path):
    assert check_folder(write_tiny_sam2(tmp_path), checksums=True) == []


# Loading


LOAD = """
from decaf_ros.config import MllmConfig
from decaf_ros.grounding.loading import load_mllm
for local, revision in LOCALS:
    load_mllm(MllmConfig("tests/tiny-mllm", revision, local_files_only=local, dtype="float32"))
"""
LOAD_SAM2 = """
from decaf_ros.config import Sam2Config
from decaf_ros.segmentation.sam2_loading import locate
for local, revision in LOCALS:
    locate(Sam2Config("facebook/sam2.1-hiera-tiny", revision=revision, local_files_only=local))
"""


def load_in_a_process(hub, program, *how):
    """As a launch: a new process, because huggingface_hub reads the hub's address when it is imported.

    how: for each loading, whether files must be local, and the revision.
    """
    program = f"LOCALS = {how}\n{program}"
    environment = os.environ | {"HF_ENDPOINT": hub.url, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)


def asked_for(hub, name):
    """Requests about a repository. (huggingface_hub also asks for a list of its own once a day.)"""
    return [path for _, path, _ in hub.requests if name in path]


@pytest.mark.parametrize(("program", "name"), [(LOAD, MLLM), (LOAD_SAM2, SAM2)])
def test_a_launch_downloads_only_if_allowed_and_says_how_to_do_it_beforehand(hub, program, name):
    advice = f"decaf weights get {name} --to DIR"
    result = load_in_a_process(hub, program, (True, ""))
    assert result.returncode and advice in result.stderr
    assert not asked_for(hub, name)
    # The second time it is in the hub's cache; another revision is not.
    result = load_in_a_process(hub, program, (False, ""), (False, ""), (False, "v1"))
    assert result.returncode == 0, result.stderr
    notice = f"checkpoint {name} is not on this machine: downloading it. To do so beforehand: decaf weights get {name} "
    assert result.stderr.count(notice) == 2
    assert result.stderr.count(f"{notice}--to DIR") == result.stderr.count(f"{notice}--revision v1 --to DIR") == 1
    assert any(re.search("/(resolve|revision)/v1", path) for path in asked_for(hub, name))
    assert any(path.endswith((WEIGHTS, ".pt")) for path in hub.paths())
    hub.requests.clear()
    result = load_in_a_process(hub, program, (True, ""), (True, "v1"))
    assert result.returncode == 0 and not asked_for(hub, name)


def test_a_folder_is_never_asked_of_the_hub(tiny_mllm_dir, tiny_sam2_dir, caplog):
    assert load_mllm(MllmConfig(checkpoint=str(tiny_mllm_dir), dtype="float32")).layers
    assert load_sam2(Sam2Config(checkpoint=str(tiny_sam2_dir))).model.image_size
    assert "downloading" not in caplog.text
