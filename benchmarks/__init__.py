"""Speed and memory: each benchmark prints a table, and writes rows that the pages are made of."""
