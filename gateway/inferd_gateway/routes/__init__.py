"""The HTTP routes. A route reads top to bottom: check, prepare, run, reply."""
