"""The trio shell around a node: performs its effects over real sockets and decides nothing."""
