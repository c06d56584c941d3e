"""The rows of the kernel's benchmark, a module for each group."""
