"""What one attention layer shows to a policy: queries, keys, values and the facts beside them."""
