"""The demo: a real pretrained encoder on three real tasks, with nothing but packages from PyPI."""

from .data import encoder_path, example_sentences, write_demo_data
from .grammar import LANGUAGES

__all__ = ["LANGUAGES", "encoder_path", "example_sentences", "write_demo_data"]
