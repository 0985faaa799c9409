"""Augmentation of training rows: one file per operation."""
