"""The `inferd` command: flags, files and environment become configuration; entries build the object graph."""
