"""The three applications. Run by `python -m services.<name>`; never installed."""
