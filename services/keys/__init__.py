"""What every service does alike with its key-encryption key: show what it wraps, and rewrap it."""
