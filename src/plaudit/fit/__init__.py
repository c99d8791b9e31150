"""Rewards from preferences."""
