"""The command `decaf weights`: downloads checkpoints beforehand, and checks them."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `weights` to the commands of `decaf`."""
    parser = commands.add_parser("weights", help="download the models' files beforehand, and check them")
    actions = parser.add_subparsers(dest="action", required=True)
    get = actions.add_parser(
        "get",
        help="download checkpoints into a folder",
        description="Downloads checkpoints into DIR/NAME, which exists as soon as all files have the hub's checksums. "
        "A repeated call goes on where the last one ended.",
    )
    add = get.add_argument
    add("names", nargs="+", metavar="NAME", help="name on the hub, such as Qwen/Qwen2.5-VL-7B-Instruct")
    add("--to", type=Path, required=True, metavar="DIR", help="parent of the new folders")
    add("--endpoint", metavar="URL", help="address of a mirror of the hub (default: HF_ENDPOINT, else the hub)")
    add("--revision", default="", help="branch, tag or commit of the repositories (default: the main branch)")
    get.set_defaults(configure=lambda args: None, run=run_get)
    check = actions.add_parser(
        "check",
        help="check the files of checkpoints",
        description="Checks every checkpoint in DIR: all files are there, each is whole by its header, and has the "
        "checksum of its SHA256SUMS, which `decaf weights get` writes. Exit status: 0 if nothing is wrong, else 1.",
    )
    check.add_argument("folder", type=Path, metavar="DIR", help="folder of a checkpoint, or a folder of such folders")
    check.set_defaults(configure=lambda args: None, run=run_check)


def run_get(args: argparse.Namespace, config: None) -> None:
    """Downloads. Raises OSError or ValueError."""
    from decaf_ros.weights.download import download

    for name in args.names:
        folder = download(
            name, args.to.expanduser(), args.endpoint, lambda line: print(line, flush=True), args.revision
        )
        stage = "sam2" if is_sam2_name(name) else "mllm"
        print(f"set {stage}.checkpoint to {folder.absolute()} and {stage}.local_files_only to true")


def run_check(args: argparse.Namespace, config: None) -> int:
    """Prints a line for each checkpoint. Returns 1 if one is wrong. Raises FileNotFoundError if there is none."""
    from decaf_ros.doctor.findings import OK, WRONG, Finding
    from decaf_ros.weights.folders import SUMS, check_folder, find_checkpoints

    folders = find_checkpoints(args.folder) if args.folder.is_dir() else []
    if not folders:
        raise FileNotFoundError(f"{args.folder}: expected a folder with a checkpoint, or with folders of checkpoints")
    wrong = 0
    for folder in folders:
        errors = check_folder(folder, checksums=True)
        how = "checksums" if (folder / SUMS).is_file() else f"sizes only, no {SUMS}"
        mend = "decaf weights get NAME --to DIR replaces such files"
        print(
            Finding(str(folder), WRONG, "; ".join(errors), mend) if errors else Finding(str(folder), OK, how),
            flush=True,
        )
        wrong += bool(errors)
    return int(wrong > 0)


def is_sam2_name(name: str) -> bool:
    """Whether a name on the hub is a checkpoint of SAM 2."""
    from sam2.build_sam import HF_MODEL_ID_TO_FILENAMES

    return name in HF_MODEL_ID_TO_FILENAMES
