"""gRPC: servicers, conversion between protobuf and the nouns, status mapping, health, reflection, auth, drain."""
