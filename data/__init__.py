"""Ground floor: configuration, artifacts and the part runner, sources, download, shards, ledger, views."""
