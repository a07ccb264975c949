"""Keeping a warehouse whole: its check-up, uniting several, taking a video out again."""
