"""The front's engine side: supervisor of the core, per-request text, admission, metrics. No gRPC, no torch."""
