"""A page to look at the data, and the server that plays its videos."""
