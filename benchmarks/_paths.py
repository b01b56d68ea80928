"""Makes the checkout and test/tiny_models importable; import it before them."""

from __future__ import annotations

import sys
from pathlib import Path

_ROOT = Path(__file__).parents[1]
sys.path += [str(_ROOT), str(_ROOT / "test")]
