"""CLIP: format, loading, identity; the frozen encoder; the Parquet embedding cache; scores."""
