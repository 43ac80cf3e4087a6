"""What rows add up to: figures with intervals, tables and pages."""
