"""Join several ordinary machines to run one language model.

Read the packages in this order: ``actors``, ``wire``, ``cluster``, ``spi``, ``inference``, ``node``, ``cli``.
"""

__version__ = "0.1.0"
