"""Markers planted where identity hides, and how many each tool leaves."""
