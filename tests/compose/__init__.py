"""The compose file, run for real. `make test-compose` runs it; pytest does not collect it."""
