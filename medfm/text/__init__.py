"""Report text: sections, cleaning, tokenizers, prompts."""
