"""Agents as processes on this machine's loopback, for `demo` and `bench`."""
