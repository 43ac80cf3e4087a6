"""What is known of a model: whether it is served, its rotary embedding, devices and processes."""
