"""The blocks that layers are made of. One file per kind of block: its description (frozen data), its parameters and
how ranks share them, what it keeps in a cache, and its forward pass. Importing a block loads no torch; only its
computation does."""
