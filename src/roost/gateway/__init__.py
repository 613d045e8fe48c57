"""Routes: stable names whose target moves. The domain side, the edge's side, and the wire between."""
