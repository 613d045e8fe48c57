"""Replays policies over recorded spot markets: sessions, services, jobs; baselines, oracles, pictures."""
