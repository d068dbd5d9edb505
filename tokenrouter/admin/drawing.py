"""Import pygal, and undo its side effects on later imports."""

import sys

import pygal
from pygal.style import Style

__all__ = ["Style", "pygal"]

# pygal hooks into the import of maps that nobody has here; its hook is of a kind that Python warns of or passes over
sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, pygal.PluginImportFixer)]
