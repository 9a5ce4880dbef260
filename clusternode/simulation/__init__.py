"""Many nodes on one event heap in virtual time: the same core, a repeatable world."""
