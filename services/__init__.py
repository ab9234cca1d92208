"""The services: one folder a process, each a sans-I/O core and a main."""
