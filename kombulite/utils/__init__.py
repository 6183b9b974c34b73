"""Helpers under the import paths that kombu's users know."""
