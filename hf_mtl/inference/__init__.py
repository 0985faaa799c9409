"""Answers: the pipeline and prediction over files."""
