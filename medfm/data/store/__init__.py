"""Preprocessed images on disk: decoded once, read as memory-mapped crops."""
