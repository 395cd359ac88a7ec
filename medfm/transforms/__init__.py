"""Preprocessing (the contract saved with every weight file) and augmentation."""
