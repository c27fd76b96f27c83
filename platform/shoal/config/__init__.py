"""A config as a tree of typed keys, and what a person writes of it.

- `schema`: sections, frozen, unknown keys refused
- `loading`: defaults <- YAML file <- `key=value`, and the table of `--help`
- `import_path`: a user's own function or class, `package.module:name`

Depends on pydantic and YAML; knows no section: each lives beside the code that it configures.
"""
