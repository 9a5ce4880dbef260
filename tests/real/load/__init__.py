"""Load on real agents: the routes that make and check it, and what their journals must say."""
