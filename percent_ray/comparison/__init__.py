"""Several methods, several seeds, one report."""
