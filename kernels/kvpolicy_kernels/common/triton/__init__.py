"""Helpers of the kernels: what they take and how they launch, logits, the largest of a row."""
