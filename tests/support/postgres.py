"""A real PostgreSQL for the session."""
