"""Where texts and images come from: files of one's own, named sets, Python's own documentation. No part of the core."""

from .files import read
from .load import load

__all__ = ["load", "read"]
