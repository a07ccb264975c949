"""Pure statistics of feedback: estimates with intervals, no table and no model."""
