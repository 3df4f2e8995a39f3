"""Strings: text to token ids and back, incrementally, and where to stop. Loads no torch."""
