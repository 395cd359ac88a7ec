"""One self-contained weight file: tensors, configurations, preprocessing contract and tokenizer."""
