"""Modules of the launcher. They run outside the package, under a bare interpreter, and import each other by name."""
