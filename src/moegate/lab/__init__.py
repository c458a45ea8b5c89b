"""The lab: real data, small models, training runs and sweeps, on top of the routing library."""
