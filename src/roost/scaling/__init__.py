"""How much capacity a service needs: forecast, queueing, risk. Pure numpy: arrays in, numbers out.

It never knows a host, a route or a clock: ``services.plan.decide`` is its one caller.
"""
