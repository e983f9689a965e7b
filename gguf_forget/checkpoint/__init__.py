"""Models on disk: a Hugging Face directory or a GGUF to a torch model, and edited tensors back out."""
