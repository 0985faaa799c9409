"""Encoder adapters: what differs between encoder architectures, one file per family."""
