"""The interface that routes, control and command line know a cluster by, and its mesh."""
