"""The engine core process: a loop over scheduler and executor, and its socket to the front. Loads no torch itself."""
