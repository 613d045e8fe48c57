"""Services on hosts for real: a burst, kills and a lost pool under load, with times and a picture."""
