"""The `minitune` command: a file for each of its commands, and main."""

from .main import main, make_parser

__all__ = ["main", "make_parser"]
