"""Sweeps: points of a space become trials, and trials a leaderboard."""
