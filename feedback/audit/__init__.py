"""Audits by people in Label Studio."""
