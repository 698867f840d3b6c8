"""Rewards and image encoders behind one Protocol."""
