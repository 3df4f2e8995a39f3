"""Paged KV bookkeeping: which block holds which tokens. Block ids only, no tensors."""
