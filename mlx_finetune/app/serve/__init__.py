"""A model and its adapters over HTTP, in the shape of OpenAI's interface."""
