"""GGUF files: the container read safely, and a Llama in it turned into a model folder."""
