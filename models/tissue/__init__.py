"""The network that tells tissue from glass and pen: scenes with their truth, the net, training. Needs `[train]`."""
