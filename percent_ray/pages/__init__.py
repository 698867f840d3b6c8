"""What every HTML page of ours shares: layout, colours, charts with their tables."""
