"""What runs on a host: the agent, its keepers and the workspace. Knows nothing of the control plane's rules."""
