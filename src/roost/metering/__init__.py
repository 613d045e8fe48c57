"""Metering: from the durable rows of instances to per-second lines and a bill. It never writes a row."""
