"""The policies that are compared: each sees a ``View`` and answers with a ``Want``."""
