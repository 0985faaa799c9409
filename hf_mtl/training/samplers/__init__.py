"""Sampling strategies: which dataset the next rows come from, one file per strategy."""
