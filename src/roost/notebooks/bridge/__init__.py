"""The bridge: five ports that never change, in front of a kernel that moves.

Two processes: the *front* owns the ports and nothing else, the *worker* owns journal and stream.
Never interprets what users compute.
"""
