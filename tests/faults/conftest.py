"""Fixtures of the suite of faults."""

from small_tree import commands, good, tree

__all__ = ["commands", "good", "tree"]
