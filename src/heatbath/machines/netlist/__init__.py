"""The network as a circuit: netlists for SPICE."""
