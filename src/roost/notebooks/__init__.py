"""Notebook sessions: a kernel and its state, which outlive the machine they run on."""
