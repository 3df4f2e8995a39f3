"""Math on tensors: the ops a decoder needs, each with a torch reference. Knows nothing of inferd."""
