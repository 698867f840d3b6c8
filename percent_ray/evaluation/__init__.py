"""Diversity and quality of finished images."""
