"""Policy host and robot host: a policy served over the network, and the loop that drives an arm.

Policy host: `deploy.server` answers observations with chunks of actions. Robot host:
`deploy.client` asks it, `deploy.executor` plays the chunks at a fixed rate. Nothing here imports
torch, but for the module that loads a policy (`deploy.checkpoint_policy`) and those that write data
sets.
"""
