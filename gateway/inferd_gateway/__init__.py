"""The OpenAI-compatible HTTP gateway in front of inferd. It loads neither torch nor a tokenizer."""

import os

# The renderer processes are exec'ed, so gRPC need not prepare for forks; it reads this when it is first imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
