"""Published checkpoints of this architecture, from whatever wrote them: one file a source."""

from .catalogue import CATALOGUE, PublishedCheckpoint
from .convert import Conversion, convert
from .families import FAMILIES
from .to_marian import to_marian

__all__ = [
    "CATALOGUE",
    "FAMILIES",
    "Conversion",
    "PublishedCheckpoint",
    "convert",
    "to_marian",
]
