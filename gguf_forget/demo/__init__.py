"""The embedded default: SmolLM2-135M-Instruct, made to forget the capitals of Europe."""
