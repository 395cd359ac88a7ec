"""`medfm doctor`: a verdict on every series of a folder or a manifest."""
