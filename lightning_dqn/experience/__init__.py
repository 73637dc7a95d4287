"""Where transitions come from: environments, exploration, replay. Knows nothing of networks."""
