"""Ways in: translate, authorise, call. No rules."""
