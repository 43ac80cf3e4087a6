"""Prompts with what follows them, on which policies of equal budget are compared."""
