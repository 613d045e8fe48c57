"""Money as integers of a nano-dollar, so that sums over millions of seconds are exact."""

NANO = 1_000_000_000
SECONDS_PER_HOUR = 3600


def nano_usd(price_usd: float) -> int:
    """Dollars to whole nano-dollars (rounded half to even)."""
    return round(price_usd * NANO)


def charge_nano_usd(price_usd_hour: float, seconds: int) -> int:
    """The charge for whole seconds at an hourly price, in nano-dollars."""
    return nano_usd(price_usd_hour) * seconds // SECONDS_PER_HOUR


def usd(nano: int) -> float:
    """Nano-dollars to dollars, for showing."""
    return nano / NANO
