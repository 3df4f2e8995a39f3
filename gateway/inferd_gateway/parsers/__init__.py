"""What a model's text holds beside its answer: reasoning and tool calls. One parser a file, plain objects.

A parser is given the text as it comes and gives out pieces at once. Its work is linear in the text, however that is
cut, and what it gives out does not depend on the cuts. It must not know of HTTP or of the daemon.
"""
