"""The segmenter with real models whose calls hang or raise on demand: `python test/faulty_node.py --ros-args ...`.

A file in the folder DECAF_FAULTS, named by a place, holds the fault: see `Faults`.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import torch

from decaf_ros.nodes import segmenter
from decaf_ros.pipeline import Decaf

FOLDER = "DECAF_FAULTS"


class Faults:
    """Hooks before the calls of the modules of both models.

    A fault is `hang` (until the file "hangs", which it makes, is gone), `raise` or `oom`. With `once ` before it the
    file goes first.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._never = threading.Event()

    def add(self, decaf: Decaf) -> None:
        sam2 = decaf.sam2.model
        for place, module in {
            "language": decaf.grounder.mllm.model.get_decoder(),
            "encoder": sam2.image_encoder,
            "mask_decoder": sam2.sam_mask_decoder,
            "memory_attention": sam2.memory_attention,
        }.items():
            module.register_forward_pre_hook(lambda *given, place=place: self._inject(place))

    def _inject(self, place: str) -> None:
        path = self._folder / place
        if not path.exists():
            return
        fault = path.read_text()
        if fault.startswith("once "):
            path.unlink()
        if fault.endswith("hang"):
            hangs = self._folder / "hangs"
            hangs.write_text(place)
            while hangs.exists():
                self._never.wait(0.01)
        elif fault.endswith("raise"):
            raise RuntimeError(f"injected into {place}")
        elif fault.endswith("oom"):
            raise torch.OutOfMemoryError(f"injected into {place}")


def main() -> int:
    faults, load = Faults(Path(os.environ[FOLDER])), Decaf.from_config

    def load_faulty(config: object) -> Decaf:
        decaf = load(config)
        faults.add(decaf)
        return decaf

    Decaf.from_config = load_faulty
    segmenter._DEACTIVATE_S, segmenter._END_S = 0.3, 1.0
    return segmenter.main()


if __name__ == "__main__":
    sys.exit(main())
