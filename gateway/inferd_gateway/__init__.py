"""The OpenAI-compatible HTTP gateway in front of inferd. It loads neither torch nor a tokenizer."""
