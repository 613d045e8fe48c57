"""One module a vendor or archive; each class implements ``ports.sources.PriceSource``. They never store."""
