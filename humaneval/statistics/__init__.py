"""From answers to rates and intervals."""
