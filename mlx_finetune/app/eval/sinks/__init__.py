"""Texts three times as long as the context, read with what is kept of them in four ways: what sinks are for."""
