"""Chat templates: Jinja sources that came with a model, rendered in a sandbox in a process that can be killed."""
