"""A config as a tree of typed keys, and its forms on the command line and in files.

- `schema`: sections, frozen, unknown keys refused
- `other_words`: what people type out of habit from other tools
- `loading`: defaults <- YAML file <- `key=value`, and the table of `--help`
- `secrets`: passwords and keys in addresses are used, and never shown or stored
- `import_path`: a user's own function or class, `package.module:name`
- `objects`: one that was passed from Python and has no import path; `object_digest`, `object_source`: its content

Depends on pydantic and YAML; independent of the sections: each is beside the code that it configures.
"""
