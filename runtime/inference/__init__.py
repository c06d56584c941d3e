"""Running models: slices, stages, drivers, sessions, and the engine that frontends call."""
