"""The three roles: rollout, perception, learner. They know nothing of who calls them."""
