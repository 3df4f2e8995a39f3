"""The HTTP bodies: types and shapes only. What a value may be is the daemon's to say."""
