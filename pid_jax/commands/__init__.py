"""The commands: each module reads flags and a configuration and makes one call of the library."""
