"""Output constraints: what a caller asked for -> a grammar -> which tokens may come next. No torch, no gRPC."""
