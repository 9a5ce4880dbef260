"""What a node was told, written down so that it can be stepped again (docs/simulation.md)."""
