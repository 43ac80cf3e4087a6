"""Find plugins, and the parts that they offer, by kind and name."""
