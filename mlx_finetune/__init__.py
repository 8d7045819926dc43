"""Fine-tuning of language models on Apple silicon: a recipe in, an adapter you can chat with out."""

__all__ = ["__version__"]

__version__ = "0.1.0"
