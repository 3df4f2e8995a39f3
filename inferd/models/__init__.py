"""Which models exist, what they are made of and how their weights are read. registry, spec and weights load no torch."""
