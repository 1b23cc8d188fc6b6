"""What lies on disk: records, their store, the cache, temporary files."""
