"""Task heads: one file per task type, each named after the type it registers."""
