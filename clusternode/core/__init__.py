"""The sans-IO core: what a node decides, without sockets, clocks, tasks or chance of its own."""
