"""What runs on a host: the agent, its keepers and the workspace. Knows no rule of the control plane."""
