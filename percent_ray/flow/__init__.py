"""Pure torch: schedules, SDE transitions, samplers."""
