"""Flow RL that measures diversity while it trains, and keeps it (arXiv 2605.12112)."""
