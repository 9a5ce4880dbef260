"""The bus: what every cluster looks like to routes, control and command line."""
