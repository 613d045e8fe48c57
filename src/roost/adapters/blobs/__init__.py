"""Blob stores. Never trust what a disk gives back before its digest is checked."""
