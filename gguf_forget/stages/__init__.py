"""The stages of a run, one file each: read artifacts, call the organs, write one artifact into ``out``."""
