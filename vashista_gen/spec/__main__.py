"""Print the JSON Schema: `python -m vashista_gen.spec > specs/schema.json`."""

from vashista_gen.spec.schema import schema_text

if __name__ == "__main__":
    print(schema_text(), end="")
