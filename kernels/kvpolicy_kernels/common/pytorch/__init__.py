"""Helpers of the references: blocks of bounded size, logits, products, the largest of a row."""
