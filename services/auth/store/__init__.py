"""All SQL of the auth service. Nothing outside this package speaks to the database."""
