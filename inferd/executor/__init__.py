"""How a step runs: workers, their models and their KV memory. The data plane; the scheduler never imports it."""
