"""Decisions over HTTP: the questions of all callers are answered together, by all members, at a promised risk."""
