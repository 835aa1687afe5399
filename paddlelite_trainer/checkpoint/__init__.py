"""What a checkpoint holds and how it reaches the disk; needs NumPy and the standard library, never Paddle."""

from .average import average_checkpoints
from .entry import Entry
from .filesystem import REAL, FileSystem
from .saved import SavedCheckpoint, open_checkpoint
from .state import decode_state, encode_state
from .store import CheckpointStore
from .writer import choose_background

__all__ = [
    "REAL",
    "CheckpointStore",
    "Entry",
    "FileSystem",
    "SavedCheckpoint",
    "average_checkpoints",
    "choose_background",
    "decode_state",
    "encode_state",
    "open_checkpoint",
]
