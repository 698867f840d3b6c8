"""What a learner does with a batch: replay or forward process, engines, EMA, checkpoints."""
