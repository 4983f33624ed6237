"""The auth service: who is trusted, and the one place that issues tokens."""
