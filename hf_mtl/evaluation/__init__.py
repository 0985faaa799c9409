"""Metrics, intervals and mistakes of every task."""
