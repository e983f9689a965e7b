"""Facts: what to forget, what to keep, how each is asked, and how a prompt is corrupted."""
