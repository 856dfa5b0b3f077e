"""Reading the cache: by row, by key, in an epoch's order."""
