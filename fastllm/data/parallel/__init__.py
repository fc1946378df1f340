"""Sentences and their translations: read, filtered, made a data folder, and batches of it."""
