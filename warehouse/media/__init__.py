"""Video files: reading frames by display time, folders of frames, and the cache of decoded frames."""
