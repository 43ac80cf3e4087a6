"""What a layer holds: rows with room to grow, the token of each slot, uneven heads."""
