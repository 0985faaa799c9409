"""The sentences of reports, one file per language."""
