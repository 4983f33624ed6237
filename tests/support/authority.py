"""Session-wide certificate authority and leaves."""
