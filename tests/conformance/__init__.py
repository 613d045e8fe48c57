"""Conformance harnesses: programs as they run, judged from outside."""
