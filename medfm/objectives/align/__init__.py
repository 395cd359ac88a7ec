"""Fine-grained alignment: terms beside the contrast of whole images and reports."""
