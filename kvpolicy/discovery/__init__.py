"""Finds installed plugins and the parts that they offer."""
