"""Figures of merit with their intervals, and plots."""
