"""One fit: its parts, the loop, and what comes before and after it."""
