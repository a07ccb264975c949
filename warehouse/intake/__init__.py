"""Rows from outside: videos from folders, questions from files, data sets in published formats."""
