"""Rows of fixed size and place, for decode steps that are captured once and replayed."""
