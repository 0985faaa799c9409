"""Multi-task learning for the Hugging Face stack: one shared encoder, one head per task."""

__version__ = "0.1.0"
