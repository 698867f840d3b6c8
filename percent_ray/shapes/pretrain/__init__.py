"""Rebuilds the shipped weights of the embedded world, one model a file."""
