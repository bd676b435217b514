"""What `map`, `listen`, `send` and `examples:` share: the mapping at work, with no journal behind it."""
