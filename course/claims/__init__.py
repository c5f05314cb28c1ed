"""The numbers of the source lectures as records: one TOML file per unit, and the few functions that they call."""
