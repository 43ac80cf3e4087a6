"""Measures the fidelity of all recipes, and prints a table for each budget."""

import typer

from kvpolicy.evaluation.fidelity.table import main

if __name__ == "__main__":
    typer.run(main)
