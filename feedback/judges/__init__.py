"""Judges as stages: who compares or rates, and how several become one."""
