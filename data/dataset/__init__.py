"""From a plan to shards and a ledger."""
