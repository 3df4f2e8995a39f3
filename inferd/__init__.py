"""inferd: a gRPC daemon that serves language models. Importing this package loads nothing."""

__version__ = "0.1.0"
