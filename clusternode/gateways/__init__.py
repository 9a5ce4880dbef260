"""Foreign cluster protocols, each a `Bus`. Specified in docs/architecture.md."""
