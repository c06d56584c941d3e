"""Measures how far the memory estimate is from what a process takes."""
