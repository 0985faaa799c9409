"""Training one model on many tasks."""
