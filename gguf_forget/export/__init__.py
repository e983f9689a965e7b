"""From an edit in full precision to files: codes on each type's grid, provenance, read back."""
