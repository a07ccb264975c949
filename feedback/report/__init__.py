"""Plots and pages about feedback."""
