"""What a checkpoint holds and how it reaches the disk; needs NumPy and the standard library, never Paddle."""

from .average import average_checkpoints
from .entry import Entry
from .filesystem import REAL, FileSystem
from .links import is_managed
from .reader import CheckpointReader
from .remote import Remote
from .remote.copier import Copier
from .saved import SavedCheckpoint, open_checkpoint
from .state import decode_state, encode_state
from .store import CheckpointStore
from .writer import choose_background

__all__ = [
    "REAL",
    "CheckpointReader",
    "CheckpointStore",
    "Copier",
    "Entry",
    "FileSystem",
    "Remote",
    "SavedCheckpoint",
    "average_checkpoints",
    "choose_background",
    "decode_state",
    "encode_state",
    "is_managed",
    "open_checkpoint",
]
