"""The configuration: where values come from (``sources``), what there is to set (``sections``), whether the one fits
the other (``check``), and all of it together (``load``).

Nothing is imported here: ``sources`` is needed for every command, and must not bring pydantic along.
"""
