"""What happens to a dataset after its first download: retries, removal, resharding, and who saw what was removed."""
