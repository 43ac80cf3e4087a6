"""What one attention layer shows to a policy: queries, keys, values, and how to read them."""
