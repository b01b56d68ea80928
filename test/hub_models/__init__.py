"""Folders as the model hub has them, written at test time: published files and shapes, few layers, random weights."""

from hub_models.folder import write_hub_folder
from hub_models.published import CHECKPOINTS

__all__ = ["CHECKPOINTS", "write_hub_folder"]
