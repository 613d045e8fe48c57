"""The keeper: parent of one kernel, with its outputs spooled until the bridge has them.

Never decides where a session lives and never reads what users compute.
"""
