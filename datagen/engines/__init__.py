"""Whatever runs a model."""
