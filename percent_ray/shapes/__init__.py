"""The embedded world: what runs with no GPU and no network."""
