"""The tiny world of `tiny.py`, and a model that has learnt some of it."""

from __future__ import annotations

from tiny import learnt, tiny_data, tiny_folder, tiny_recipe

__all__ = ["learnt", "tiny_data", "tiny_folder", "tiny_recipe"]
