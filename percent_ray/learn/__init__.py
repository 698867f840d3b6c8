"""Replay, loss, optimizer step, checkpoints."""
