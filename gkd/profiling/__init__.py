"""Where the time of a training step goes, what bounds it, and what to do about that."""
