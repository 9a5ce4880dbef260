"""A full member of a real OpenSIPS cluster: BIN packets over TCP or TLS, and a `Bus` for us."""
