"""Which models exist, their parts and how their weights are read. registry, spec and weights load no torch."""
