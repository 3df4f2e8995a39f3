"""Ranks of a model and the collectives between them, as values that are passed on. Knows no model."""
