"""Metrics of answers, and how sure a figure is."""
