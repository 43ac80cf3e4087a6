"""What a cache answers after an exception in the middle of an operation: exact, or refused."""
