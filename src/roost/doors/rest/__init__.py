"""The REST door: JSON over HTTP, bearer tokens, problem details for errors."""
