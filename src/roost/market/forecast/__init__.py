"""How long a pool lasts: online features, the hazard model, its training and its evaluation."""
