"""A synthetic video world whose truth is known."""
