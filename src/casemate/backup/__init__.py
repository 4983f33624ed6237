"""Backups that prove what they are, and restores that do not bring back what was taken away.

`manifest` says what a backup holds and who made it, `create` makes one, `verify`
judges one, `restore` puts one back. The key-encryption keys are never inside.
"""
