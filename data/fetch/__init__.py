"""Download: our fetch and our resizer, driven through img2dataset one shard at a time."""
