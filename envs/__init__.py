"""Simulation: LIBERO as gymnasium environments, scripted demonstrators and fault-tolerant rollouts.

Nothing here imports torch: a rollout worker is a simulator process and nothing else.
"""
