"""Prompt streams and the Arrow schema."""
