"""Generated stubs of the public contract `inferd.v1` (made by `make proto` from proto/). Loads no torch."""
