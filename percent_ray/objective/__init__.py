"""Pure torch: advantages, entropies, reward shaping, the GRPO loss."""
