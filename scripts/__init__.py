"""Entry points: argument parsing and one call each."""
