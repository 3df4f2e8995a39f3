"""Fakes for tests: the real server, scheduler and wire around an executor whose answers can be computed by hand."""
