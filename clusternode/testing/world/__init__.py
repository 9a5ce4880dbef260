"""`clusternode simulate --world agents`: whole agents in the simulator's world."""
