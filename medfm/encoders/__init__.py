"""Image and text encoders behind one interface; see `medfm.encoders.config` for their knobs."""
