"""The things that are upgraded, and their groups: registration, attributes, last contact."""
