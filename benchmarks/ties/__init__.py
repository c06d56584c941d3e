"""Texts that are generated in several ways, and what decides where they differ."""
