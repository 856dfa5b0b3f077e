"""From features to numbers."""
