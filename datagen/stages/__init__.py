"""One stage of generation each: what is pending, what to ask, what the reply becomes."""
