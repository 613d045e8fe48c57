"""One short wiring per program. The only package that names concrete classes."""
