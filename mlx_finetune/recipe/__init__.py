"""What the user asked for: the schema of a recipe, and how TOML becomes one."""
