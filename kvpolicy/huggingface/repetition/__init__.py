"""A second pass: the model repeats a prompt before its layers evict."""
