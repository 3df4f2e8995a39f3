"""What runs next: requests in, step plans out, results back in. Never imports an executor."""
